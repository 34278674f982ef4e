#include "ops/nms/nms.h"

#include <algorithm>
#include <vector>

#include "box_math.h"
#include "cpu/kept_boxes.h"
#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

struct Candidate {
  int64_t label;
  uint64_t key;  // orders a class: descending_key(score, index)
};

bool operator<(const Candidate& a, const Candidate& b) {
  return a.label != b.label ? a.label < b.label : a.key < b.key;
}

Corners load(const float* boxes, int64_t i) {
  return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

std::vector<Candidate> usable_candidates(const NmsInputs& in, const float* boxes) {
  std::vector<Candidate> candidates;
  candidates.reserve(in.num_boxes);
  for (int64_t i = 0; i < in.num_boxes; ++i) {
    const bool is_number = in.scores[i] == in.scores[i];
    if (is_number && finite(load(boxes, i))) {
      const int64_t label = in.labels == nullptr ? 0 : in.labels[i];
      candidates.push_back({label, descending_key(in.scores[i], static_cast<uint32_t>(i))});
    }
  }
  return candidates;
}

// Positions in the sorted candidates where a class begins, and their end.
std::vector<size_t> class_bounds(const std::vector<Candidate>& candidates) {
  std::vector<size_t> bounds;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (i == 0 || candidates[i].label != candidates[i - 1].label) bounds.push_back(i);
  }
  bounds.push_back(candidates.size());
  return bounds;
}

std::vector<uint64_t> suppress_class(const float* boxes, const Candidate* begin, const Candidate* end,
                                     float threshold) {
  KeptBoxes kept;
  kept.reset(1);
  std::vector<uint64_t> kept_keys;
  for (const Candidate* candidate = begin; candidate != end; ++candidate) {
    const Corners box = load(boxes, key_index(candidate->key));
    const float box_area = area(box);
    if (kept.suppresses(0, box, box_area, threshold)) continue;
    kept.add(0, box, box_area);
    kept_keys.push_back(candidate->key);
  }
  return kept_keys;
}

}  // namespace

std::string nms_limits(const NmsInputs& in, const NmsOptions&) {
  return exceeded({{"the number of boxes", in.num_boxes, NmsLimits::kMaxBoxes}}, "the CPU");
}

void nms(const NmsInputs& in, const NmsOptions& options, const NmsOutputs& out) {
  const auto* const boxes = static_cast<const float*>(in.boxes);
  std::vector<Candidate> candidates = usable_candidates(in, boxes);
  std::sort(candidates.begin(), candidates.end());
  const std::vector<size_t> bounds = class_bounds(candidates);
  const auto num_classes = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<std::vector<uint64_t>> kept_of_class(num_classes);
  parallel_for(0, num_classes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      kept_of_class[c] = suppress_class(boxes, candidates.data() + bounds[c], candidates.data() + bounds[c + 1],
                                        options.iou_threshold);
    }
  });
  std::vector<uint64_t> keys;
  for (const auto& class_keys : kept_of_class) keys.insert(keys.end(), class_keys.begin(), class_keys.end());
  if (num_classes > 1) std::sort(keys.begin(), keys.end());
  std::transform(keys.begin(), keys.end(), out.kept, key_index);
  *out.count = static_cast<int64_t>(keys.size());
}

}  // namespace refinedet::cpu
