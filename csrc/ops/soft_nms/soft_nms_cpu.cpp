#include "ops/soft_nms/soft_nms.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

constexpr float kDropped = std::numeric_limits<float>::quiet_NaN();

struct Candidate {
  int64_t label, row;  // of all images' rows
};

// Candidates [begin, end) of one class of one image, rows ascending.
struct Group {
  const Candidate *begin, *end;
};

Corners load(const float* boxes, int64_t row) {
  return {boxes[4 * row], boxes[4 * row + 1], boxes[4 * row + 2], boxes[4 * row + 3]};
}

bool usable(const SoftNmsInputs& in, const SoftNmsOptions& options, int64_t row) {
  const float score = in.scores[row], floor = options.score_threshold;
  const bool counts = options.official ? score == score : score >= floor;
  return in.labels[row] > 0 && counts && finite(load(static_cast<const float*>(in.boxes), row));
}

// Those of an image, class by class.
std::vector<Candidate> candidates_of(const SoftNmsInputs& in, const SoftNmsOptions& options, int64_t image) {
  std::vector<Candidate> candidates;
  candidates.reserve(in.num_boxes);
  for (int64_t row = image * in.num_boxes; row < (image + 1) * in.num_boxes; ++row) {
    if (usable(in, options, row)) candidates.push_back({in.labels[row], row});
  }
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return a.label != b.label ? a.label < b.label : a.row < b.row;
  });
  return candidates;
}

void append_groups(const std::vector<Candidate>& candidates, std::vector<Group>* groups) {
  const Candidate* const end = candidates.data() + candidates.size();
  for (const Candidate* begin = candidates.data(); begin != end;) {
    const Candidate* const last =
        std::find_if(begin, end, [&](const Candidate& other) { return other.label != begin->label; });
    groups->push_back({begin, last});
    begin = last;
  }
}

// Boxes of a class in columns, for one vector step meets many of them. A rank orders as the scores do; one of 0: the box
// is picked or dropped.
struct Columns {
  float *x1, *y1, *x2, *y2, *areas, *scores;
  uint32_t* ranks;
};

struct Left {
  uint32_t highest, count;  // rank, of how many boxes that are left
};

// All boxes meet the one that is picked.
REFINEDET_VECTOR_CLONES
Left decay_scores(const Columns& columns, int64_t count, Corners picked, const SoftNmsOptions& given) {
  const SoftNmsOptions options = given;
  const float pixel = pixel_of(options), picked_area = area(picked, pixel);
  const float *__restrict const x1 = columns.x1, *__restrict const y1 = columns.y1;
  const float *__restrict const x2 = columns.x2, *__restrict const y2 = columns.y2;
  const float* __restrict const areas = columns.areas;
  float* __restrict const scores = columns.scores;
  uint32_t* __restrict const ranks = columns.ranks;
  Left left{0, 0};
  for (int64_t i = 0; i < count; ++i) {
    const float inter = intersection(picked, {x1[i], y1[i], x2[i], y2[i]}, pixel);
    const float iou = any_iou(inter, picked_area, areas[i]);
    const float score = scores[i] * soft_nms_weight(iou, options);
    const bool stays = (iou == 0.0f) | (score >= options.score_threshold);
    const uint32_t rank = stays && ranks[i] != 0 ? ascending_bits(score) : 0;
    scores[i] = score;
    ranks[i] = rank;
    left.highest = rank > left.highest ? rank : left.highest;
    left.count += rank != 0;
  }
  return left;
}

// The boxes of a class that are not picked yet, rows ascending.
class Remaining {
 public:
  Remaining(const Group& group, const SoftNmsInputs& in, const SoftNmsOptions& options)
      : options_(options), size_(group.end - group.begin), rows_(size_), floats_(6 * size_), ranks_(size_) {
    float* const first = floats_.data();
    columns_ = {first,
                first + size_,
                first + 2 * size_,
                first + 3 * size_,
                first + 4 * size_,
                first + 5 * size_,
                ranks_.data()};
    for (int64_t i = 0; i < size_; ++i) {
      const int64_t row = group.begin[i].row;
      const Corners box = load(static_cast<const float*>(in.boxes), row);
      put(i, row, box, in.scores[row], ascending_bits(in.scores[row]));
    }
    left_ = {*std::max_element(ranks_.begin(), ranks_.end()), static_cast<uint32_t>(size_)};
  }

  // Picks until nothing is left, and writes the scores of the picked rows.
  void pick_all(float* decayed) {
    while (left_.count > 0) {
      const int64_t i = std::find(ranks_.begin(), ranks_.begin() + size_, left_.highest) - ranks_.begin();
      decayed[rows_[i]] = columns_.scores[i];
      ranks_[i] = 0;
      left_ = decay_scores(columns_, size_, box(i), options_);
      if (left_.count < size_ - size_ / 4) compact();
    }
  }

 private:
  Corners box(int64_t i) const { return {columns_.x1[i], columns_.y1[i], columns_.x2[i], columns_.y2[i]}; }

  void put(int64_t i, int64_t row, Corners box, float score, uint32_t rank) {
    rows_[i] = row;
    columns_.x1[i] = box.x1;
    columns_.y1[i] = box.y1;
    columns_.x2[i] = box.x2;
    columns_.y2[i] = box.y2;
    columns_.areas[i] = area(box, pixel_of(options_));
    columns_.scores[i] = score;
    ranks_[i] = rank;
  }

  // Moves those that are left together.
  void compact() {
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      if (ranks_[i] != 0) put(kept++, rows_[i], box(i), columns_.scores[i], ranks_[i]);
    }
    size_ = kept;
  }

  const SoftNmsOptions& options_;
  int64_t size_;
  std::vector<int64_t> rows_;
  std::vector<float> floats_;
  std::vector<uint32_t> ranks_;
  Columns columns_{};
  Left left_{};
};

}  // namespace

std::string soft_nms_limits(const SoftNmsInputs& in, const SoftNmsOptions&) {
  return exceeded({{"the number of boxes", in.num_boxes, SoftNmsLimits::kMaxBoxes}}, "the CPU");
}

void soft_nms(const SoftNmsInputs& in, const SoftNmsOptions& options, const SoftNmsOutputs& out) {
  std::fill_n(out.decayed, in.batch * in.num_boxes, kDropped);
  std::vector<std::vector<Candidate>> candidates(in.batch);
  parallel_for(0, in.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) candidates[image] = candidates_of(in, options, image);
  });
  std::vector<Group> groups;
  for (const std::vector<Candidate>& of_image : candidates) append_groups(of_image, &groups);
  parallel_for(0, static_cast<int64_t>(groups.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) Remaining(groups[i], in, options).pick_all(out.decayed);
  });
}

}  // namespace refinedet::cpu
