#include "ops/mine.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "box_math.h"
#include "ops/cpu/parallel.h"

namespace refinedet::cpu {
namespace {

constexpr int64_t kRowsPerTask = 512;  // a softmax of few classes is short: below this a thread does not pay

constexpr int64_t kLanes = 32;          // exponentials computed together

struct Candidate {
  float loss;
  int64_t anchor;
  bool operator<(const Candidate& other) const {  // harder first, then lower anchor
    return loss != other.loss ? loss > other.loss : anchor < other.anchor;
  }
};

// How many negatives image b wants, before looking at how many are eligible.
int64_t num_wanted(const MineInput& in, int64_t b) {
  const int64_t* labels = in.labels + b * in.num_anchors;
  const auto positives = std::count_if(labels, labels + in.num_anchors, [](int64_t label) { return label > 0; });
  const double wanted = std::floor(in.negative_ratio * static_cast<double>(positives));
  return static_cast<int64_t>(std::min(wanted, static_cast<double>(in.num_anchors)));
}

bool eligible(const MineInput& in, int64_t row) {
  return in.labels[row] == 0 && in.ious[row] < in.negative_iou &&
         (in.objectness == nullptr || in.objectness[row] >= in.objectness_threshold);
}

// p0 of the softmax, summed in class order.
REFINEDET_VECTOR_CLONES
float background_probability(const float* logits, int64_t num_classes) {
  const float top = *std::max_element(logits, logits + num_classes);
  float terms[kLanes], sum = 0.0f;
  for (int64_t first = 0; first < num_classes; first += kLanes) {
    const int64_t count = std::min(kLanes, num_classes - first);
    for (int64_t i = 0; i < count; ++i) terms[i] = portable_exp(logits[first + i] - top);
    for (int64_t i = 0; i < count; ++i) sum += terms[i];
  }
  return portable_exp(logits[0] - top) / sum;
}

// What to rank by: the loss, or of logits -max(p0, FLT_MIN), which orders alike. NaN = never selected.
float hardness(const MineInput& in, int64_t row) {
  if (!eligible(in, row)) return std::numeric_limits<float>::quiet_NaN();
  if (in.num_classes == 0) return in.losses[row];
  const float p0 = background_probability(in.losses + row * in.num_classes, in.num_classes);
  return p0 < FLT_MIN ? -FLT_MIN : -p0;
}

void select(const float* losses, int64_t num_anchors, int64_t wanted, bool* mask) {
  std::vector<Candidate> candidates;
  for (int64_t i = 0; i < num_anchors; ++i)
    if (!std::isnan(losses[i])) candidates.push_back({losses[i], i});
  wanted = std::min(wanted, static_cast<int64_t>(candidates.size()));
  std::nth_element(candidates.begin(), candidates.begin() + wanted, candidates.end());
  for (int64_t i = 0; i < wanted; ++i) mask[candidates[i].anchor] = true;
}

}  // namespace

void mine(const MineInput& in, bool* mask) {
  const int64_t rows = in.batch * in.num_anchors;
  std::fill_n(mask, rows, false);
  std::vector<int64_t> wanted(in.batch);
  for (int64_t b = 0; b < in.batch; ++b) wanted[b] = num_wanted(in, b);
  std::vector<float> losses(rows);
  parallel_for(0, rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      if (wanted[row / in.num_anchors] > 0) losses[row] = hardness(in, row);
  });
  parallel_for(0, in.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * in.num_anchors;
      if (wanted[b] > 0) select(losses.data() + first, in.num_anchors, wanted[b], mask + first);
    }
  });
}

}  // namespace refinedet::cpu
