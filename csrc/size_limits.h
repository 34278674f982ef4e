// Sizes that kernels do not take, on the host.
#pragma once

#if !defined(__CUDACC_RTC__)

#include <cstdint>
#include <initializer_list>
#include <string>

namespace refinedet {

struct Limit {
  const char* name;
  int64_t value, most;
};

// Why a request is refused: the first value above its limit. Empty if there is none.
inline std::string exceeded(std::initializer_list<Limit> limits, const char* device) {
  for (const Limit& limit : limits) {
    if (limit.value > limit.most) {
      return std::string(limit.name) + " is " + std::to_string(limit.value) + ", on " + device + " at most " +
             std::to_string(limit.most);
    }
  }
  return {};
}

namespace cuda {

constexpr int64_t kMaxBatch = 65535;  // second dimension of a grid

}  // namespace cuda
}  // namespace refinedet

#endif
