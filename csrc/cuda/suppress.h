// Greedy suppression by bit masks, shared by detect and nms. Candidates come in tiles of 64, best first. A warp looks
// at a whole tile: each lane has the candidates `lane` and `lane + 32`, and two ballots make a word of a bit each.
#pragma once

#include "box_math.h"
#include "cuda/block.h"
#include "cuda/runtime.h"

namespace refinedet::cuda {

constexpr int kTile = 2 * kWarpSize;

__device__ inline uint64_t ballot_tile(bool low, bool high) {
  const unsigned low_bits = __ballot_sync(kFullWarp, low), high_bits = __ballot_sync(kFullWarp, high);
  return static_cast<uint64_t>(high_bits) << kWarpSize | low_bits;
}

// The bits below `i` < 64.
__device__ inline uint64_t bits_below(int i) { return (uint64_t{1} << i) - 1; }

__device__ inline bool suppresses(Corners kept, Corners candidate, float threshold) {
  return overlaps(intersection(kept, candidate), area(kept), area(candidate), threshold);
}

// Which candidates of a tile the boxes box(first), box(first + step), .. below `end` suppress. Called by a whole warp.
template <class Box, class Boxes>
__device__ uint64_t suppressed_by(const Boxes& box, int first, int end, int step, Box low, Box high, float threshold) {
  bool low_hit = false, high_hit = false;
  for (int k = first; k < end; k += step) {
    const Box kept = box(k);
    low_hit = low_hit || suppresses(kept, low, threshold);
    high_hit = high_hit || suppresses(kept, high, threshold);
  }
  return ballot_tile(low_hit, high_hit);
}

// Goes through the candidates of a tile, best first: each is kept and takes those out that it suppresses, rows[i] being
// the word of candidate i. Costs a step per kept candidate, so every thread does it for itself instead of being told.
__device__ inline uint64_t pick_greedily(const uint64_t* rows, uint64_t candidates) {
  uint64_t kept = 0;
  while (candidates != 0) {
    const int best = __ffsll(static_cast<long long>(candidates)) - 1;
    const uint64_t bit = uint64_t{1} << best;
    kept |= bit;
    candidates &= ~(rows[best] | bit);
  }
  return kept;
}

}  // namespace refinedet::cuda
