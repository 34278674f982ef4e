// The CUDA side of detect: raw pointers to device memory, sizes, a stream. Same contract as ops/detect.h.
#pragma once

#include "ops/cuda/input_type.h"
#include "ops/cuda/runtime.h"
#include "ops/detect.h"

#if !defined(__CUDACC_RTC__)
#include <string>
#endif

namespace refinedet::cuda {

constexpr int kMaxLevels = 4;             // RefineDet has strides 8, 16, 32, 64
constexpr int64_t kMaxTopK = 2048;        // keys and kept boxes of a class fit in the 48 KiB of shared memory that
constexpr int64_t kMaxKeepTopK = 1024;    //   every GPU gives a block
constexpr int64_t kMaxClasses = 4095;     // the exponentials of an anchor fit in 16 KiB of shared memory
constexpr int64_t kMaxBatch = 65535;      // second dimension of a grid

// Outputs of the network for consecutive anchors of every image, [B,n,*] with rows as in ops/detect.h. A head map in
// NHWC order, [B,h,w,3 * k], is just that for the n = 3 * h * w anchors of its level, so the maps of the network need no
// copy; concatenated tensors are one level. Aligned to an element; reads are faster where aligned to four.
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
  const float* anchors;  // [N,4], of all levels
};

struct DetectShape {
  int64_t batch, num_anchors, num_classes;
};

#if !defined(__CUDACC_RTC__)

// Bytes of device memory that `detect` needs beside its inputs and outputs: about 8 B N C.
int64_t detect_workspace_bytes(const DetectShape& shape, const DetectOptions& options);

// Why the kernels cannot take this request, or an empty string.
std::string detect_refusal(const DetectShape& shape, const DetectOptions& options);

// Queues at most three kernels and a memset; neither allocates nor waits. `workspace` is aligned to 256 bytes, output
// boxes to 16.
void detect(const DetectHeads& heads, const DetectShape& shape, const DetectOptions& options,
            const DetectOutputs& outputs, void* workspace, Stream stream);

#endif

}  // namespace refinedet::cuda
