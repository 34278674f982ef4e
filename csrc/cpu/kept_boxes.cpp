#include "cpu/kept_boxes.h"

#include <algorithm>
#include <limits>

#include "cpu/parallel.h"

namespace refinedet::cpu {

KeptBoxes::Block* KeptBoxes::new_block() {
  if (used_ == static_cast<int64_t>(chunks_.size()) * kChunk) {
    chunks_.push_back(std::make_unique_for_overwrite<Block[]>(kChunk));
  }
  Block* const block = &chunks_[used_ / kChunk][used_ % kChunk];
  ++used_;
  // A free place holds an inverted box, which overlaps nothing.
  std::fill_n(block->x1, kLanes, std::numeric_limits<float>::infinity());
  std::fill_n(block->y1, kLanes, std::numeric_limits<float>::infinity());
  std::fill_n(block->x2, kLanes, 0.0f);
  std::fill_n(block->y2, kLanes, 0.0f);
  std::fill_n(block->area, kLanes, 0.0f);
  block->next = nullptr;
  return block;
}

void KeptBoxes::add(int64_t list, const Corners& box, float box_area) {
  List& entry = lists_[list];
  if (entry.lane == kLanes) {
    Block* const added = new_block();
    (entry.first == nullptr ? entry.first : entry.last->next) = added;
    entry.last = added;
    entry.lane = 0;
  }
  Block& block = *entry.last;
  const int lane = entry.lane++;
  block.x1[lane] = box.x1;
  block.y1[lane] = box.y1;
  block.x2[lane] = box.x2;
  block.y2[lane] = box.y2;
  block.area[lane] = box_area;
}

REFINEDET_VECTOR_CLONES
bool KeptBoxes::any_overlap(const Block* first, const Corners& box, float box_area, float threshold) {
  for (const Block* kept = first; kept != nullptr; kept = kept->next) {
    int32_t hit = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const Corners other{kept->x1[lane], kept->y1[lane], kept->x2[lane], kept->y2[lane]};
      hit |= overlaps(intersection(other, box), kept->area[lane], box_area, threshold);
    }
    if (hit != 0) return true;
  }
  return false;
}

}  // namespace refinedet::cpu
