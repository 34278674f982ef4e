// The boxes that a greedy suppression has kept so far, in lists: one for each class, or part of the image. They are
// laid out so that one candidate meets several of them per vector step.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "box_math.h"

namespace refinedet::cpu {

class KeptBoxes {
 public:
  // Empty lists. The memory of those before stays.
  void reset(int64_t num_lists) {
    used_ = 0;
    lists_.assign(num_lists, {});
  }

  // `box_area` is the area of `box`, here and below.
  void add(int64_t list, const Corners& box, float box_area);

  // Whether a box of the list suppresses this one. `threshold` is not negative.
  bool suppresses(int64_t list, const Corners& box, float box_area, float threshold) const {
    const Block* const first = lists_[list].first;
    return first != nullptr && any_overlap(first, box, box_area, threshold);
  }

  int64_t bytes() const { return chunks_.size() * kChunk * sizeof(Block) + lists_.capacity() * sizeof(List); }

 private:
  static constexpr int kLanes = 16;
  static constexpr int64_t kChunk = 64;  // blocks that are allocated together

  struct alignas(64) Block {  // no vector crosses a cache line
    float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];
    Block* next;
  };

  struct List {
    Block *first = nullptr, *last = nullptr;
    int32_t lane = kLanes;  // next free place in the last block
  };

  Block* new_block();

  // The box comes in memory, from where it is broadcast.
  static bool any_overlap(const Block* first, const Corners& box, float box_area, float threshold);

  std::vector<std::unique_ptr<Block[]>> chunks_;  // blocks stay where they are
  int64_t used_ = 0;                              // blocks
  std::vector<List> lists_;
};

}  // namespace refinedet::cpu
