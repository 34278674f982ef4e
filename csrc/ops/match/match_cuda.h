// The CUDA side of match: raw pointers to device memory, sizes, a stream. Same contract as ops/match.h, but:
// gt_offsets stay on the device, so nobody has checked them; outside 0 .. num_truths or descending they are clamped.
#pragma once

#include "cuda/runtime.h"
#include "ops/match/match.h"

#if !defined(__CUDACC_RTC__)
#include <string>
#endif

namespace refinedet::cuda {

using cpu::MatchInput;
using cpu::MatchOutput;

#if !defined(__CUDACC_RTC__)

// Bytes of device memory that `match` needs beside its inputs and outputs, a function of sizes: about 8 M + B N / 2.
// `num_truths` is the M of gt_boxes [M,4].
int64_t match_workspace_bytes(const MatchInput& in, int64_t num_truths);

// Why the kernels cannot take this request, or an empty string.
std::string match_refusal(const MatchInput& in, int64_t num_truths);

// Queues at most two kernels and a memset; neither allocates nor waits. `workspace` is aligned to 256 bytes,
// out.targets to 16, other arrays to an element; anchors and gt_boxes are read faster where aligned to 16 bytes.
void match(const MatchInput& in, int64_t num_truths, const MatchOutput& out, void* workspace, Stream stream);

#endif

}  // namespace refinedet::cuda
