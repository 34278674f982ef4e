#include "cpu/kept_boxes.h"

#include <algorithm>
#include <limits>

#include "cpu/parallel.h"

namespace refinedet::cpu {

// A free place holds an inverted box, which overlaps nothing.
KeptBoxes::Block::Block() {
  std::fill_n(x1, kLanes, std::numeric_limits<float>::infinity());
  std::fill_n(y1, kLanes, std::numeric_limits<float>::infinity());
  std::fill_n(x2, kLanes, 0.0f);
  std::fill_n(y2, kLanes, 0.0f);
  std::fill_n(area, kLanes, 0.0f);
}

void KeptBoxes::add(int64_t list, const Corners& box, float box_area) {
  List& entry = lists_[list];
  if (entry.lane == kLanes) {
    const auto added = static_cast<int32_t>(blocks_.size());
    blocks_.emplace_back();
    (entry.first == kNone ? entry.first : blocks_[entry.last].next) = added;
    entry.last = added;
    entry.lane = 0;
  }
  Block& block = blocks_[entry.last];
  const int lane = entry.lane++;
  block.x1[lane] = box.x1;
  block.y1[lane] = box.y1;
  block.x2[lane] = box.x2;
  block.y2[lane] = box.y2;
  block.area[lane] = box_area;
}

REFINEDET_VECTOR_CLONES
bool KeptBoxes::any_overlap(const Block* blocks, int32_t first, const Corners& box, float box_area, float threshold) {
  for (int32_t i = first; i != kNone; i = blocks[i].next) {
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
