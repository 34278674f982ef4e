// The CUDA side of detect: raw pointers to device memory, sizes, a stream. Same contract as ops/detect.h.
#pragma once

#include "ops/cuda/runtime.h"
#include "ops/detect.h"

#if !defined(__CUDACC_RTC__)
#include <string>
#endif

namespace refinedet::cuda {

enum class InputType { kFloat32, kFloat16, kBFloat16 };

constexpr int kMaxLevels = 8;
constexpr int64_t kMaxTopK = 2048;      // sort keys and kept boxes of a class: 48 KiB of shared memory, what every GPU has
constexpr int64_t kMaxKeepTopK = 1024;
constexpr int64_t kMaxClasses = 4096;   // one row of exponentials in shared memory
constexpr int64_t kMaxBatch = 65535;    // second dimension of a grid

// Outputs of the network for some consecutive anchors of every image: [B,n,*], rows as in ops/detect.h. A head map in
// NHWC order, [B,h,w,3*k], is just that for the n = 3*h*w anchors of its level, so the network's maps need no copy; the
// concatenated tensors are one level. Pointers are aligned to four elements (odm_conf: to one).
struct DetectLevel {
  const void* arm_loc;   // may be null, in all levels or none
  const void* arm_conf;  // may be null, in all levels or none
  const void* odm_loc;
  const void* odm_conf;
  int64_t num_anchors;
};

struct DetectHeads {
  InputType type;
  int num_levels;
  DetectLevel levels[kMaxLevels];
  const float* anchors;  // [N,4], aligned to four elements
};

struct DetectShape {
  int64_t batch, num_anchors, num_classes, top_k, keep_top_k;
};

#if !defined(__CUDACC_RTC__)

// Bytes of device memory that `detect` needs beside its inputs and outputs.
int64_t detect_workspace_bytes(const DetectShape& shape);

// Why the kernels cannot take this shape, or an empty string.
std::string detect_refusal(const DetectShape& shape);

// Queues at most three kernels and a memset; neither allocates nor waits. `workspace` is aligned to 256 bytes.
void detect(const DetectHeads& heads, const DetectShape& shape, const DetectOptions& options, const DetectOutputs& outputs,
            void* workspace, Stream stream);

#endif

}  // namespace refinedet::cuda
