#include "ops/mine/mine.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "box_math.h"
#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

constexpr int64_t kRowsPerTask = 512;  // a softmax of few classes is short: below this a thread does not pay
constexpr int64_t kLanes = 16;         // rows whose softmax is computed together

struct Candidate {
  float loss;
  int64_t anchor;
  bool operator<(const Candidate& other) const {  // harder first, then lower anchor
    return loss != other.loss ? loss > other.loss : anchor < other.anchor;
  }
};

// How many negatives image b wants, before looking at how many are eligible.
int64_t num_wanted(const MineInputs& in, const MineOptions& options, int64_t b) {
  const int64_t* labels = in.labels + b * in.num_anchors;
  const auto positives = std::count_if(labels, labels + in.num_anchors, [](int64_t label) { return label > 0; });
  if (positives == 0) return 0;  // the ratio may be infinity
  const double wanted = std::floor(options.negative_ratio * static_cast<double>(positives));
  return static_cast<int64_t>(std::min(wanted, static_cast<double>(in.num_anchors)));
}

bool eligible(const MineInputs& in, const MineOptions& options, int64_t row) {
  return in.labels[row] == 0 && in.ious[row] < options.negative_iou &&
         (in.objectness == nullptr || in.objectness[row] >= options.objectness_threshold);
}

// Softmax of several rows side by side. Each row is summed in class order.
class BackgroundProbability {
 public:
  explicit BackgroundProbability(int64_t num_classes) : num_classes_(num_classes), logits_(num_classes * kLanes) {}

  void load(int64_t lane, const float* logits) {
    for (int64_t c = 0; c < num_classes_; ++c) logits_[c * kLanes + lane] = logits[c];
  }

  void compute(float* p0) const { compute(logits_.data(), num_classes_, p0); }

 private:
  REFINEDET_VECTOR_CLONES
  static void compute(const float* logits, int64_t num_classes, float* p0) {
    float top[kLanes], sum[kLanes] = {};
    std::copy_n(logits, kLanes, top);
    for (int64_t c = 1; c < num_classes; ++c)
      for (int64_t k = 0; k < kLanes; ++k) top[k] = logits[c * kLanes + k] > top[k] ? logits[c * kLanes + k] : top[k];
    for (int64_t c = 0; c < num_classes; ++c)
      for (int64_t k = 0; k < kLanes; ++k) sum[k] += portable_exp(logits[c * kLanes + k] - top[k]);
    for (int64_t k = 0; k < kLanes; ++k) p0[k] = portable_exp(logits[k] - top[k]) / sum[k];
  }

  int64_t num_classes_;
  std::vector<float> logits_;  // [num_classes, kLanes]
};

// Writes what each of `rows` is ranked by: its loss, or of logits -max(p0, FLT_MIN), which orders alike.
void rank(const MineInputs& in, const std::vector<int64_t>& rows, float* hardness) {
  const auto* const losses = static_cast<const float*>(in.losses);
  if (in.num_classes == 0) {
    for (const int64_t row : rows) hardness[row] = losses[row];
    return;
  }
  BackgroundProbability softmax(in.num_classes);
  float p0[kLanes];
  const int64_t size = static_cast<int64_t>(rows.size());
  for (int64_t first = 0; first < size; first += kLanes) {
    const int64_t count = std::min(kLanes, size - first);
    for (int64_t k = 0; k < count; ++k) softmax.load(k, losses + rows[first + k] * in.num_classes);
    softmax.compute(p0);
    for (int64_t k = 0; k < count; ++k) hardness[rows[first + k]] = p0[k] < FLT_MIN ? -FLT_MIN : -p0[k];
  }
}

// Marks the `wanted` hardest of the anchors whose hardness is not NaN.
void select(const float* hardness, int64_t num_anchors, int64_t wanted, bool* mask) {
  std::vector<Candidate> candidates;
  for (int64_t i = 0; i < num_anchors; ++i)
    if (!std::isnan(hardness[i])) candidates.push_back({hardness[i], i});
  wanted = std::min(wanted, static_cast<int64_t>(candidates.size()));
  std::nth_element(candidates.begin(), candidates.begin() + wanted, candidates.end());
  for (int64_t i = 0; i < wanted; ++i) mask[candidates[i].anchor] = true;
}

}  // namespace

std::string mine_limits(const MineInputs&, const MineOptions&) { return {}; }

void mine(const MineInputs& in, const MineOptions& options, const MineOutputs& out) {
  const int64_t num_rows = in.batch * in.num_anchors;
  std::vector<int64_t> wanted(in.batch);
  for (int64_t b = 0; b < in.batch; ++b) wanted[b] = num_wanted(in, options, b);
  std::vector<float> hardness(num_rows, std::numeric_limits<float>::quiet_NaN());
  parallel_for(0, num_rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> rows;
    for (int64_t row = begin; row < end; ++row)
      if (eligible(in, options, row) && wanted[row / in.num_anchors] > 0) rows.push_back(row);
    rank(in, rows, hardness.data());
  });
  std::fill_n(out.mask, num_rows, false);
  parallel_for(0, in.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * in.num_anchors;
      if (wanted[b] > 0) select(hardness.data() + first, in.num_anchors, wanted[b], out.mask + first);
    }
  });
}

}  // namespace refinedet::cpu
