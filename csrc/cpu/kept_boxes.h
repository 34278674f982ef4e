// The boxes that a greedy suppression has kept so far, in lists: one for each class, or part of the image. They are
// laid out so that one candidate meets several of them per vector step.
#pragma once

#include <cstdint>
#include <vector>

#include "box_math.h"

namespace refinedet::cpu {

class KeptBoxes {
 public:
  // Empty lists. The memory of those before stays.
  void reset(int64_t num_lists) {
    blocks_.clear();
    lists_.assign(num_lists, {});
  }

  // `box_area` is the area of `box`, here and below.
  void add(int64_t list, const Corners& box, float box_area);

  // Whether a box of the list suppresses this one. `threshold` is not negative.
  bool suppresses(int64_t list, const Corners& box, float box_area, float threshold) const {
    const int32_t first = lists_[list].first;
    return first != kNone && any_overlap(blocks_.data(), first, box, box_area, threshold);
  }

  int64_t bytes() const { return blocks_.capacity() * sizeof(Block) + lists_.capacity() * sizeof(List); }

 private:
  static constexpr int kLanes = 16;
  static constexpr int32_t kNone = -1;

  struct alignas(64) Block {  // no vector crosses a cache line
    Block();

    float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];
    int32_t next = kNone;
  };

  struct List {
    int32_t first = kNone, last = kNone;
    int32_t lane = kLanes;  // next free place in the last block
  };

  // The box comes in memory, from where it is broadcast.
  static bool any_overlap(const Block* blocks, int32_t first, const Corners& box, float box_area, float threshold);

  std::vector<Block> blocks_;
  std::vector<List> lists_;
};

}  // namespace refinedet::cpu
