// Memory of a thread that outlives the call, so that a call allocates nothing once its sizes have been met.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace refinedet::cpu {

// An array that grows and is not initialised.
template <class T>
class Scratch {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  T* data() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[i]; }
  int64_t bytes() const { return capacity_ * sizeof(T); }

  // Room for `count` elements, of which the first `used` keep their values.
  T* reserve(int64_t count, int64_t used = 0) {
    if (count > capacity_) {
      const int64_t capacity = std::max(count, 2 * capacity_);
      std::unique_ptr<T[]> data(new T[capacity]);
      std::copy_n(data_.get(), used, data.get());
      data_ = std::move(data);
      capacity_ = capacity;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<T[]> data_;
  int64_t capacity_ = 0;
};

// What a thread keeps of a type S of such arrays, with `int64_t bytes() const`. After a large call it keeps nothing.
template <class S>
class ThreadScratch {
 public:
  ThreadScratch() : scratch_(kept()) {}
  ~ThreadScratch() {
    if (scratch_.bytes() > kMostKept) scratch_ = S();
  }
  ThreadScratch(const ThreadScratch&) = delete;
  ThreadScratch& operator=(const ThreadScratch&) = delete;

  S* operator->() const { return &scratch_; }
  S& operator*() const { return scratch_; }

 private:
  static constexpr int64_t kMostKept = int64_t{4} << 20;

  static S& kept() {
    thread_local S scratch;
    return scratch;
  }

  S& scratch_;
};

}  // namespace refinedet::cpu
