// The CUDA side of mine: raw pointers to device memory, sizes, a stream. Same contract as ops/mine/mine.h.
#pragma once

#include "cuda/runtime.h"
#include "export.h"
#include "ops/mine/mine.h"

#if !defined(__CUDACC_RTC__)

namespace refinedet::cuda {

REFINEDET_EXPORT std::string mine_limits(const MineInputs& inputs, const MineOptions& options);

// 4 per anchor.
REFINEDET_EXPORT int64_t mine_workspace_bytes(const MineInputs& inputs, const MineOptions& options);

// Queues at most two kernels and a memset.
REFINEDET_EXPORT void mine(const MineInputs& inputs, const MineOptions& options, const MineOutputs& outputs,
                           void* workspace, Stream stream);

}  // namespace refinedet::cuda

#endif
