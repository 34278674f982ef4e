// The CUDA side of soft_nms: raw pointers to device memory, sizes, a stream. Same contract as ops/soft_nms/soft_nms.h,
// given the order of the labels, which a library sorts better.
#pragma once

#include "cuda/runtime.h"
#include "export.h"
#include "ops/soft_nms/soft_nms.h"

#if !defined(__CUDACC_RTC__)

namespace refinedet::cuda {

REFINEDET_EXPORT std::string soft_nms_limits(const SoftNmsInputs& inputs, const SoftNmsOptions& options);

// 24 per box, none for up to 512 boxes in an image.
REFINEDET_EXPORT int64_t soft_nms_workspace_bytes(const SoftNmsInputs& inputs, const SoftNmsOptions& options);

// Queues one kernel, none when there is nothing to do.
REFINEDET_EXPORT void soft_nms(const SoftNmsInputs& inputs, const SoftNmsOptions& options,
                               const SoftNmsOutputs& outputs, void* workspace, Stream stream);

}  // namespace refinedet::cuda

#endif
