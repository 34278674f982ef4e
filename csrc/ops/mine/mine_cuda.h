// The CUDA side of mine: raw pointers to device memory, sizes, a stream. Same contract as ops/mine.h.
#pragma once

#include "cuda/input_type.h"
#include "cuda/runtime.h"
#include "ops/mine/mine.h"

#if !defined(__CUDACC_RTC__)
#include <string>
#endif

namespace refinedet::cuda {

struct MineInput {
  InputType type;  // of `losses`
  const void* losses;
  int64_t num_classes;  // of the logits; 0 = `losses` are losses
  const int64_t* labels;
  const float* ious;
  const float* objectness;  // null = none
  int64_t batch, num_anchors;
  float negative_iou, objectness_threshold;
  double negative_ratio;
};

#if !defined(__CUDACC_RTC__)

// Bytes of device memory that `mine` needs beside its inputs and output.
int64_t mine_workspace_bytes(const MineInput& in);

// Why the kernels cannot take this request, or an empty string.
std::string mine_refusal(const MineInput& in);

// Queues at most two kernels and a memset; neither allocates nor waits. `workspace` is aligned to 256 bytes.
void mine(const MineInput& in, bool* mask, void* workspace, Stream stream);

#endif

}  // namespace refinedet::cuda
