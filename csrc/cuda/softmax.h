// Softmax of the logits of a block's anchors, up to the division; shared by detect and mine.
#pragma once

#include "box_math.h"
#include "cuda/block.h"
#include "cuda/load.h"
#include "cuda/runtime.h"

namespace refinedet::cuda {

constexpr int kTileTerms = 4096;  // exponentials a block keeps: 16 KiB, so that several blocks share a multiprocessor

// Anchors of one block whose softmax is taken together: as many as have room for their exponentials.
struct SoftmaxTile {
  const int* anchors;  // within the block
  int count;
  float* terms;  // exponentials, a row per anchor
  int row_size;

  __device__ const float* row(int i) const { return terms + i * row_size; }
};

// Odd, so that reading down a column meets every memory bank.
__host__ __device__ constexpr int softmax_row_size(int num_classes) { return num_classes | 1; }

// Threads that share an anchor, a power of two: a warp for each of a few anchors, no more than find work for many.
__device__ inline int lanes_per_anchor(int num_anchors, int num_classes, int logits_at_once) {
  int lanes = num_anchors > warps_of_block() ? 1 : kWarpSize;  // only saves work: other lanes, same sums
  while (lanes < kWarpSize) {
    if (lanes * logits_at_once >= num_classes) break;  // only saves work: more lanes would idle
    lanes *= 2;
  }
  return lanes;
}

// Fills the terms, and calls visit(i, highest logit of anchor i) once per anchor. `logits` is the row of the block's
// first anchor. All threads of the block call; ends with a barrier.
template <class T, class Visit>
__device__ void take_exponentials(const SoftmaxTile& tile, const T* logits, int num_classes, const Visit& visit) {
  constexpr int kLogitsAtOnce = 4;  // that a thread loads: hides latency, and leaves few threads idle
  const float minus_infinity = bits_float(0xff800000u);
  const int lanes = lanes_per_anchor(tile.count, num_classes, kLogitsAtOnce);
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  for (int first = 0; first < tile.count; first += groups) {
    const bool used = first + group < tile.count;
    const int i = used ? first + group : 0;  // a group too many looks on: shuffles need all lanes
    const T* const row = logits + int64_t{tile.anchors[i]} * num_classes;
    float* const terms = tile.terms + i * tile.row_size;
    float highest = minus_infinity;
    for (int c = lane; c < num_classes; c += kLogitsAtOnce * lanes) {
      float loaded[kLogitsAtOnce];
      for (int k = 0; k < kLogitsAtOnce; ++k)
        loaded[k] = c + k * lanes < num_classes ? load(row + c + k * lanes) : minus_infinity;
      for (int k = 0; k < kLogitsAtOnce; ++k) {
        highest = loaded[k] > highest ? loaded[k] : highest;
        if (used && c + k * lanes < num_classes) terms[c + k * lanes] = loaded[k];
      }
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, highest, distance);
      highest = other > highest ? other : highest;
    }
    if (!used) continue;
    if (lane == 0) visit(i, highest);
    for (int c = lane; c < num_classes; c += lanes) terms[c] = portable_exp(terms[c] - highest);
  }
  __syncthreads();
}

template <class T>
__device__ void take_exponentials(const SoftmaxTile& tile, const T* logits, int num_classes) {
  take_exponentials(tile, logits, num_classes, [](int, float) {});
}

// Sum of an anchor's terms, in class order as the CPU does it: the same bit for bit.
__device__ inline float sum_terms(const float* terms, int num_classes) {
  float total = 0.0f;
  for (int c = 0; c < num_classes; ++c) total += terms[c];
  return total;
}

}  // namespace refinedet::cuda
