// The CUDA side of vote: raw pointers to device memory, sizes, a stream. Same contract as ops/vote/vote.h, given the
// order of scores and labels, which a library sorts better.
#pragma once

#include "cuda/runtime.h"
#include "export.h"
#include "ops/vote/vote.h"

#if !defined(__CUDACC_RTC__)

namespace refinedet::cuda {

REFINEDET_EXPORT std::string vote_limits(const VoteInputs& inputs, const VoteOptions& options);

// 60 per box.
REFINEDET_EXPORT int64_t vote_workspace_bytes(const VoteInputs& inputs, const VoteOptions& options);

// Queues 3 kernels.
REFINEDET_EXPORT void vote(const VoteInputs& inputs, const VoteOptions& options, const VoteOutputs& outputs,
                           void* workspace, Stream stream);

}  // namespace refinedet::cuda

#endif
