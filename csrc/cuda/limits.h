// Sizes that the kernels do not take, on the host.
#pragma once

#include "cuda/runtime.h"

#if !defined(__CUDACC_RTC__)

#include <string>

namespace refinedet::cuda {

constexpr int64_t kMaxBatch = 65535;  // second dimension of a grid

inline std::string refusal(const char* name, int64_t value, int64_t limit) {
  return std::string(name) + " is " + std::to_string(value) + ", on CUDA at most " + std::to_string(limit);
}

}  // namespace refinedet::cuda

#endif
