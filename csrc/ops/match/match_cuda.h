// The CUDA side of match: raw pointers to device memory, sizes, a stream. Same contract as ops/match/match.h, but:
// gt_offsets stay on the device, so nobody has checked them; outside 0 .. num_truths or descending they are clamped.
#pragma once

#include "cuda/runtime.h"
#include "export.h"
#include "ops/match/match.h"

#if !defined(__CUDACC_RTC__)

namespace refinedet::cuda {

REFINEDET_EXPORT std::string match_limits(const MatchInputs& inputs, const MatchOptions& options);

// About 8 M + B N / 2.
REFINEDET_EXPORT int64_t match_workspace_bytes(const MatchInputs& inputs, const MatchOptions& options);

// Queues at most two kernels and a memset. `targets` is aligned to 16 bytes, other arrays to an element; anchors and
// gt_boxes are read faster where aligned to 16 bytes.
REFINEDET_EXPORT void match(const MatchInputs& inputs, const MatchOptions& options, const MatchOutputs& outputs,
                            void* workspace, Stream stream);

}  // namespace refinedet::cuda

#endif
