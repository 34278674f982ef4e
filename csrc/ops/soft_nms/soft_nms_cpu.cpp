#include "ops/soft_nms/soft_nms.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

constexpr int kLanes = 16;  // boxes that go through a vector function together

using Rows = std::vector<int64_t>;  // ascending; they count through all images

Corners load(const SoftNmsInputs& in, int64_t row) {
  const float* const box = static_cast<const float*>(in.boxes) + 4 * row;
  return {box[0], box[1], box[2], box[3]};
}

bool usable(const SoftNmsInputs& in, const SoftNmsOptions& options, int64_t row) {
  const float score = in.scores[row];
  const bool counts = options.official ? score == score : score >= options.score_threshold;
  return in.labels[row] > 0 && counts && finite(load(in, row));
}

// The rows of each class of an image.
std::vector<Rows> classes_of(const SoftNmsInputs& in, const SoftNmsOptions& options, int64_t image) {
  std::vector<Rows> classes;
  std::unordered_map<int64_t, size_t> numbers;  // of the labels
  for (int64_t row = image * in.num_boxes; row < (image + 1) * in.num_boxes; ++row) {
    if (!usable(in, options, row)) continue;
    const auto [label, is_new] = numbers.try_emplace(in.labels[row], classes.size());
    if (is_new) classes.emplace_back();
    classes[label->second].push_back(row);
  }
  return classes;
}

// Boxes of a class. A NaN score: the box was picked or dropped, or there never was one.
struct Block {
  float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes], score[kLanes];
};

// What blocks hold, by lane.
struct Lanes {
  float highest[kLanes];  // score; NaN: there is no box
  int32_t first[kLanes];  // block that has it
  int32_t boxes[kLanes];
};

struct Left {
  int64_t best, boxes;  // place of the highest score, the first of several; number of boxes
};

Left reduce(const Lanes& lanes) {
  Left left{0, 0};
  float highest = dropped_score();
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes.boxes[lane] == 0) continue;
    const int64_t place = int64_t{lanes.first[lane]} * kLanes + lane;
    const bool first = left.boxes == 0 || lanes.highest[lane] > highest;
    if (first || (lanes.highest[lane] == highest && place < left.best)) {
      highest = lanes.highest[lane];
      left.best = place;
    }
    left.boxes += lanes.boxes[lane];
  }
  return left;
}

// All boxes meet the one that is picked. Three loops, for GCC vectorises each, and none that does all.
template <class Weight>
inline __attribute__((always_inline)) Left decay_blocks(Block* blocks, int32_t count, Corners picked, float pixel,
                                                        float floor, const Weight& weight) {
  const float picked_area = area(picked, pixel);
  Lanes lanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    lanes.highest[lane] = dropped_score();
    lanes.first[lane] = lanes.boxes[lane] = 0;
  }
  for (int32_t i = 0; i < count; ++i) {
    Block& block = blocks[i];
    float iou[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const Corners box{block.x1[lane], block.y1[lane], block.x2[lane], block.y2[lane]};
      iou[lane] = any_iou(intersection(picked, box, pixel), picked_area, block.area[lane]);
    }
#pragma GCC unroll 1  // or it is unrolled before it could be vectorised: 4 times slower
    for (int lane = 0; lane < kLanes; ++lane) {
      const float decayed = block.score[lane] * weight(iou[lane]);
      const bool stays = (iou[lane] == 0.0f) | (decayed >= floor);
      block.score[lane] = stays ? decayed : dropped_score();
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const float score = block.score[lane];
      const bool better = (score > lanes.highest[lane]) | (lanes.highest[lane] != lanes.highest[lane]);
      lanes.highest[lane] = better ? score : lanes.highest[lane];
      lanes.first[lane] = better ? i : lanes.first[lane];
      lanes.boxes[lane] += score == score ? 1 : 0;
    }
  }
  return reduce(lanes);
}

REFINEDET_VECTOR_CLONES
Left decay_linearly(Block* blocks, int32_t count, Corners picked, const SoftNmsOptions& options) {
  const float threshold = options.iou_threshold;
  return decay_blocks(blocks, count, picked, pixel_of(options), options.score_threshold,
                      [=](float iou) { return linear_weight(iou, threshold); });
}

REFINEDET_VECTOR_CLONES
Left decay_by_gaussian(Block* blocks, int32_t count, Corners picked, const SoftNmsOptions& options) {
  const float sigma = options.sigma;
  return decay_blocks(blocks, count, picked, pixel_of(options), options.score_threshold,
                      [=](float iou) { return gaussian_weight(iou, sigma); });
}

constexpr Corners kNowhere{0.0f, 0.0f, -2.0f, -2.0f};  // meets no box, even with a pixel more

// The boxes of a class that are not picked yet, by row.
class Remaining {
 public:
  Remaining(const Rows& rows, const SoftNmsInputs& in, const SoftNmsOptions& options) : options_(options), rows_(rows) {
    blocks_.resize((rows_.size() + kLanes - 1) / kLanes);
    int64_t place = 0;
    for (const int64_t row : rows_) {
      const Corners box = load(in, row);
      put(place++, box, area(box, pixel_of(options)), in.scores[row]);
    }
    fill_up();
  }

  // Picks until nothing is left, and writes the scores of what is picked.
  void pick_all(float* decayed) {
    Left left = meet(kNowhere);
    while (left.boxes > 0) {
      Block& block = blocks_[left.best / kLanes];
      const int64_t lane = left.best % kLanes;
      decayed[rows_[left.best]] = block.score[lane];
      block.score[lane] = dropped_score();
      left = meet({block.x1[lane], block.y1[lane], block.x2[lane], block.y2[lane]});
      if (2 * left.boxes < static_cast<int64_t>(rows_.size())) compact(&left);
    }
  }

 private:
  Left meet(Corners picked) {
    const auto decay = options_.gaussian ? decay_by_gaussian : decay_linearly;
    return decay(blocks_.data(), static_cast<int32_t>(blocks_.size()), picked, options_);
  }

  void put(int64_t place, Corners box, float area, float score) {
    Block& block = blocks_[place / kLanes];
    const int64_t lane = place % kLanes;
    block.x1[lane] = box.x1;
    block.y1[lane] = box.y1;
    block.x2[lane] = box.x2;
    block.y2[lane] = box.y2;
    block.area[lane] = area;
    block.score[lane] = score;
  }

  // Moves those that are left together.
  void compact(Left* left) {
    int64_t kept = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(rows_.size()); ++i) {
      const Block& block = blocks_[i / kLanes];
      const int64_t lane = i % kLanes;
      if (block.score[lane] != block.score[lane]) continue;
      if (i == left->best) left->best = kept;
      rows_[kept] = rows_[i];
      put(kept++, {block.x1[lane], block.y1[lane], block.x2[lane], block.y2[lane]}, block.area[lane],
          block.score[lane]);
    }
    rows_.resize(kept);
    blocks_.resize((kept + kLanes - 1) / kLanes);
    fill_up();
  }

  // The rest of the last block.
  void fill_up() {
    const auto end = static_cast<int64_t>(blocks_.size()) * kLanes;
    for (auto i = static_cast<int64_t>(rows_.size()); i < end; ++i) put(i, kNowhere, 0.0f, dropped_score());
  }

  const SoftNmsOptions& options_;
  Rows rows_;
  std::vector<Block> blocks_;
};

}  // namespace

std::string soft_nms_limits(const SoftNmsInputs& in, const SoftNmsOptions&) {
  return exceeded({{"the number of boxes", in.num_boxes, SoftNmsLimits::kMaxBoxes}}, "the CPU");
}

void soft_nms(const SoftNmsInputs& in, const SoftNmsOptions& options, const SoftNmsOutputs& out) {
  std::fill_n(out.decayed, in.batch * in.num_boxes, dropped_score());
  std::vector<std::vector<Rows>> classes(in.batch);
  parallel_for(0, in.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) classes[image] = classes_of(in, options, image);
  });
  std::vector<const Rows*> all;
  for (const std::vector<Rows>& of_image : classes) {
    for (const Rows& rows : of_image) all.push_back(&rows);
  }
  parallel_for(0, static_cast<int64_t>(all.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) Remaining(*all[i], in, options).pick_all(out.decayed);
  });
}

}  // namespace refinedet::cpu
