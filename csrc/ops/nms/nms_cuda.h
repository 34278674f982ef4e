// The CUDA side of nms: raw pointers to device memory, sizes, a stream. Same contract as ops/nms.h, given the order of
// the scores, which a library sorts better.
#pragma once

#include "cuda/input_type.h"
#include "cuda/runtime.h"

namespace refinedet::cuda {

struct NmsInputs {
  InputType type;         // of the boxes
  const void* boxes;      // [N,4]
  const float* scores;    // [N]
  const int64_t* labels;  // [N], may be null: one class
  const int64_t* order;   // [N] boxes by score descending, equal scores by index ascending; NaN scores anywhere
  int64_t num_boxes;      // less than 2^31
};

struct NmsOutputs {
  int64_t* kept;   // room for N; the first *count are written
  int64_t* count;  // [1]
};

#if !defined(__CUDACC_RTC__)

// Bytes of device memory that `nms` needs beside its inputs and outputs: 24 per box, and at most 2.1 MiB.
int64_t nms_workspace_bytes(int64_t num_boxes);

// Queues 3 kernels for every 4096 boxes; neither allocates nor waits. `workspace` is aligned to 256 bytes.
void nms(const NmsInputs& inputs, float iou_threshold, const NmsOutputs& outputs, void* workspace, Stream stream);

#endif

}  // namespace refinedet::cuda
