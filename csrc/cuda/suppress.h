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

// What box_math.h calls overlaps(intersection(..), ..), of boxes that are finite: then the hardware's minimum and
// maximum give the same.
__device__ inline bool suppresses(Corners kept, Corners candidate, float threshold) {
  const float width = fminf(kept.x2, candidate.x2) - fmaxf(kept.x1, candidate.x1);
  const float height = fminf(kept.y2, candidate.y2) - fmaxf(kept.y1, candidate.y1);
  return overlaps(fmaxf(width, 0.0f) * fmaxf(height, 0.0f), area(kept), area(candidate), threshold);
}

// Which candidates of a tile the boxes box(first), box(first + step), .. below `end` suppress. Called by a whole warp.
template <class Box, class Boxes>
__device__ uint64_t suppressed_by(const Boxes& box, int first, int end, int step, Box low, Box high, float threshold) {
  bool low_hit = false, high_hit = false;
#pragma unroll 1  // few registers, so that more blocks fit
  for (int k = first; k < end; k += step) {
    const Box kept = box(k);
    low_hit |= suppresses(kept, low, threshold);
    high_hit |= suppresses(kept, high, threshold);
  }
  return ballot_tile(low_hit, high_hit);
}

// The candidates of a tile that greedy suppression keeps, best first; rows[i] is whom candidate i suppresses, and also
// who suppresses it, for both are the same. In rounds: an open candidate that no open better one suppresses is kept,
// whom it suppresses is out. A round is four ballots, whatever it decides; a tile takes as many rounds as its longest
// chain of suppressions. Called by whole warps, each for itself instead of being told.
__device__ inline uint64_t pick_greedily(const uint64_t* rows, uint64_t candidates) {
  const int lane = lane_index();
  const uint64_t low = rows[lane] & bits_below(lane), high = rows[lane + kWarpSize] & bits_below(lane + kWarpSize);
  uint64_t kept = 0, open = candidates;
  while (open != 0) {
    const uint64_t best = open & ballot_tile((low & open) == 0, (high & open) == 0);
    kept |= best;
    open &= ~(best | ballot_tile((low & best) != 0, (high & best) != 0));
  }
  return kept;
}

}  // namespace refinedet::cuda
