// Divides a workspace into arrays, on the host.
#pragma once

#include "cuda/runtime.h"

#if !defined(__CUDACC_RTC__)

namespace refinedet::cuda {

class Layout {
 public:
  // `memory` null: only counts the bytes.
  explicit Layout(char* memory) : memory_(memory) {}

  template <class T>
  T* part(int64_t count) {
    T* const start = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return start;
  }

  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignment = 256;  // of every part: whole cache lines

  char* const memory_;
  int64_t bytes_ = 0;
};

}  // namespace refinedet::cuda

#endif
