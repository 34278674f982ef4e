// Element types that the CUDA launchers take.
#pragma once

#include "box_math.h"

namespace refinedet::cuda {

enum class InputType { kFloat32, kFloat16, kBFloat16 };

// float16 and bfloat16 are bits to us; cuda/load.h reads them as float32.
struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

#if !defined(__CUDACC_RTC__)

// Calls run(T{}) for the C++ type of the elements.
template <class Run>
void dispatch(InputType type, const Run& run) {
  switch (type) {
    case InputType::kFloat32: return run(float{});
    case InputType::kFloat16: return run(Half{});
    case InputType::kBFloat16: return run(BFloat16{});
  }
}

#endif

}  // namespace refinedet::cuda
