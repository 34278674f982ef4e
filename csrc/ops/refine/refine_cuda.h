// The CUDA side of refine: raw pointers to device memory, sizes, a stream. Same contract as ops/refine/refine.h.
#pragma once

#include "cuda/runtime.h"
#include "export.h"
#include "ops/refine/refine.h"

#if !defined(__CUDACC_RTC__)

namespace refinedet::cuda {

REFINEDET_EXPORT std::string refine_limits(const RefineInputs& inputs, const RefineOptions& options);

// None.
REFINEDET_EXPORT int64_t refine_workspace_bytes(const RefineInputs& inputs, const RefineOptions& options);

// Queues one kernel, none when there is nothing to do. `refined` is aligned to 16 bytes; inputs need not be.
REFINEDET_EXPORT void refine(const RefineInputs& inputs, const RefineOptions& options, const RefineOutputs& outputs,
                             void* workspace, Stream stream);

}  // namespace refinedet::cuda

#endif
