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

void refine(const float* anchors, bool shared_anchors, const float* offsets, int64_t batch, int64_t num_anchors,
            Variances variances, float* refined) {
  parallel_for(0, batch * num_anchors, kGrain, [=](int64_t begin, int64_t end) {
    while (begin < end) {  // one step per image that the range touches
      const int64_t first = begin % num_anchors;
      const int64_t count = std::min(end - begin, num_anchors - first);
      const float* row = anchors + 4 * (shared_anchors ? first : begin);
      refine_row(row, offsets + 4 * begin, count, variances, refined + 4 * begin);
      begin += count;
    }
  });
}

}  // namespace refinedet::cpu
