#include "ops/refine/refine.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

constexpr int64_t kGrain = 4096;  // anchors per task: about 20 us, well above the cost of waking a thread

REFINEDET_VECTOR_CLONES
void refine_row(const float* anchors, const float* offsets, int64_t count, Variances variances, float* refined) {
  for (int64_t i = 0; i < 4 * count; i += 4) {
    const Center anchor{anchors[i], anchors[i + 1], anchors[i + 2], anchors[i + 3]};
    const Center offset{offsets[i], offsets[i + 1], offsets[i + 2], offsets[i + 3]};
    const Center box = decode(anchor, offset, variances);
    refined[i] = box.cx;
    refined[i + 1] = box.cy;
    refined[i + 2] = box.w;
    refined[i + 3] = box.h;
  }
}

}  // namespace

std::string refine_limits(const RefineInputs&, const RefineOptions&) { return {}; }

void refine(const RefineInputs& in, const RefineOptions& options, const RefineOutputs& out) {
  parallel_for(0, in.batch * in.num_anchors, kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // one step per image that the range touches
      const int64_t first = begin % in.num_anchors;
      const int64_t count = std::min(end - begin, in.num_anchors - first);
      const float* const anchors = in.anchors + 4 * (in.shared_anchors ? first : begin);
      const float* const offsets = static_cast<const float*>(in.offsets) + 4 * begin;
      refine_row(anchors, offsets, count, options.variances, out.refined + 4 * begin);
      begin += count;
    }
  });
}

}  // namespace refinedet::cpu
