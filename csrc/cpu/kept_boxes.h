// The boxes a greedy suppression has kept so far, laid out so that one candidate meets 16 of them per vector step.
#pragma once

#include <cstdint>
#include <vector>

#include "box_math.h"

namespace refinedet::cpu {

class KeptBoxes {
 public:
  void add(Corners box);

  // Whether any kept box suppresses this one. `threshold` is not negative.
  bool suppresses(Corners box, float threshold) const;

 private:
  static constexpr int kLanes = 16;

  struct Block {
    float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];
  };

  static bool any_overlap(const Block* blocks, size_t count, Corners box, float threshold);

  std::vector<Block> blocks_;
  int lane_ = kLanes;  // next free place in the last block
};

}  // namespace refinedet::cpu
