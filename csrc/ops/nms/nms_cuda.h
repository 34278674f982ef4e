// The CUDA side of nms: raw pointers to device memory, sizes, a stream. Same contract as ops/nms/nms.h, given the order
// of the scores, which a library sorts better.
#pragma once

#include "cuda/runtime.h"
#include "export.h"
#include "ops/nms/nms.h"

#if !defined(__CUDACC_RTC__)

namespace refinedet::cuda {

REFINEDET_EXPORT std::string nms_limits(const NmsInputs& inputs, const NmsOptions& options);

// 24 per box, and at most 2.1 MiB.
REFINEDET_EXPORT int64_t nms_workspace_bytes(const NmsInputs& inputs, const NmsOptions& options);

// Queues 3 kernels for every 4096 boxes.
REFINEDET_EXPORT void nms(const NmsInputs& inputs, const NmsOptions& options, const NmsOutputs& outputs,
                          void* workspace, Stream stream);

}  // namespace refinedet::cuda

#endif
