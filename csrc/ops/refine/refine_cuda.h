// The CUDA side of refine: raw pointers to device memory, sizes, a stream. Same contract as ops/refine.h.
#pragma once

#include "box_math.h"
#include "cuda/input_type.h"
#include "cuda/runtime.h"

namespace refinedet::cuda {

struct RefineInputs {
  InputType type;        // of the offsets
  const float* anchors;  // [N,4], or [B,N,4] unless shared_anchors
  bool shared_anchors;
  const void* offsets;  // [B,N,4]
  int64_t batch, num_anchors;
};

#if !defined(__CUDACC_RTC__)

// Queues one kernel, none when there is nothing to do. `refined` [B,N,4] is aligned to 16 bytes; inputs need not be.
void refine(const RefineInputs& inputs, Variances variances, float* refined, Stream stream);

#endif

}  // namespace refinedet::cuda
