#include "cpu/kept_boxes.h"

#include <algorithm>
#include <limits>

#include "cpu/parallel.h"

namespace refinedet::cpu {

void KeptBoxes::add(Corners box) {
  if (lane_ == kLanes) {
    // A free place holds an inverted box, which overlaps nothing.
    Block& block = blocks_.emplace_back();
    std::fill_n(block.x1, kLanes, std::numeric_limits<float>::infinity());
    std::fill_n(block.y1, kLanes, std::numeric_limits<float>::infinity());
    lane_ = 0;
  }
  Block& block = blocks_.back();
  block.x1[lane_] = box.x1;
  block.y1[lane_] = box.y1;
  block.x2[lane_] = box.x2;
  block.y2[lane_] = box.y2;
  block.area[lane_] = area(box);
  ++lane_;
}

bool KeptBoxes::suppresses(Corners box, float threshold) const {
  return any_overlap(blocks_.data(), blocks_.size(), box, threshold);
}

REFINEDET_VECTOR_CLONES
bool KeptBoxes::any_overlap(const Block* blocks, size_t count, Corners box, float threshold) {
  const float box_area = area(box);
  for (size_t i = 0; i < count; ++i) {
    const Block& kept = blocks[i];
    int32_t hit = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const Corners other{kept.x1[lane], kept.y1[lane], kept.x2[lane], kept.y2[lane]};
      hit |= overlaps(intersection(other, box), kept.area[lane], box_area, threshold);
    }
    if (hit != 0) return true;
  }
  return false;
}

}  // namespace refinedet::cpu
