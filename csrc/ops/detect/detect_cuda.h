// The CUDA side of detect: raw pointers to device memory, sizes, a stream. Same contract as ops/detect.h.
#pragma once

#include "cuda/input_type.h"
#include "cuda/runtime.h"
#include "ops/detect/detect.h"

#if !defined(__CUDACC_RTC__)
#include <string>
#endif

namespace refinedet::cuda {

constexpr int64_t kMaxTopK = 2048;        // keys and kept boxes of a class fit in the 48 KiB of shared memory that
constexpr int64_t kMaxKeepTopK = 1024;    //   every GPU gives a block
constexpr int64_t kMaxClasses = 4095;     // the exponentials of an anchor fit in 16 KiB of shared memory

// Reads are faster where the levels are aligned to four elements.
struct DetectHeads : DetectInputs<void> {
  InputType type;
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
