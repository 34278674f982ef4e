// The CUDA side of detect: raw pointers to device memory, sizes, a stream. Same contract as ops/detect/detect.h. Reads
// are faster where the levels are aligned to four elements.
#pragma once

#include "cuda/runtime.h"
#include "export.h"
#include "ops/detect/detect.h"

#if !defined(__CUDACC_RTC__)

namespace refinedet::cuda {

REFINEDET_EXPORT std::string detect_limits(const DetectInputs& inputs, const DetectOptions& options);

// About 64 B N, or 24 B N and 512 candidates of every class where that is more.
REFINEDET_EXPORT int64_t detect_workspace_bytes(const DetectInputs& inputs, const DetectOptions& options);

// Queues at most three kernels and a memset. `boxes` are aligned to 16 bytes.
REFINEDET_EXPORT void detect(const DetectInputs& inputs, const DetectOptions& options, const DetectOutputs& outputs,
                             void* workspace, Stream stream);

}  // namespace refinedet::cuda

#endif
