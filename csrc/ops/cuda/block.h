// What a block of threads does together with 64-bit sort keys (box_math.h, descending_key): find the k smallest of many
// without sorting them, and sort a few in shared memory. Keys are distinct but for kNoKey, which stands for "none".
// Every function here is called by all threads of the block.
#pragma once

#include "box_math.h"
#include "ops/cuda/runtime.h"

namespace refinedet::cuda {

constexpr uint64_t kNoKey = ~uint64_t{0};
constexpr int kDigitBits = 8;  // of a radix pass: a histogram of 256 counters
constexpr int kDigits = 1 << kDigitBits;

// Position of this thread's item among the block's items, in thread order, and their number. `warp_counts` holds one int
// per warp and may be used again after the next barrier.
struct Rank {
  int position, total;
};

__device__ inline Rank rank_in_block(bool has_item, int* warp_counts) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  const unsigned ballot = __ballot_sync(kFullWarp, has_item);
  if (lane == 0) warp_counts[warp] = __popc(ballot);
  __syncthreads();
  Rank rank{__popc(ballot & ((1u << lane) - 1)), 0};
  for (int w = 0; w < warps; ++w) {
    if (w < warp) rank.position += warp_counts[w];
    rank.total += warp_counts[w];
  }
  return rank;
}

// The `wanted`-th smallest of the keys `key(0) .. key(count - 1)`, of which more than `wanted` are not kNoKey: radix
// selection from the most significant digit, one pass over the keys per digit. Uses kDigits + 2 ints of shared memory.
template <class Key>
__device__ uint64_t select_key(const Key& key, int64_t count, int wanted, int* shared) {
  int* const histogram = shared;
  int* const chosen = shared + kDigits;  // digit, and how many keys are still wanted among those with it
  uint64_t prefix = 0;
  for (int shift = 64 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = threadIdx.x; i < kDigits; i += blockDim.x) histogram[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      const uint64_t k = key(i);
      const bool inside = shift == 64 - kDigitBits || (k >> (shift + kDigitBits)) == prefix;
      if (k != kNoKey && inside) atomicAdd(&histogram[(k >> shift) & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 0, before = 0;
      while (before + histogram[digit] < wanted) before += histogram[digit++];
      chosen[0] = digit;
      chosen[1] = wanted - before;
    }
    __syncthreads();
    prefix = prefix << kDigitBits | static_cast<uint64_t>(chosen[0]);
    wanted = chosen[1];
    __syncthreads();  // before the next pass writes `chosen`
  }
  return prefix;
}

// Sorts `size` keys, a power of two, in shared memory: bitonic, ascending.
__device__ inline void sort_keys(uint64_t* keys, int size) {
  for (int width = 2; width <= size; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
        const int low = 2 * i - (i & (distance - 1)), high = low + distance;
        const bool ascending = (low & width) == 0;
        const uint64_t a = keys[low], b = keys[high];
        if ((a > b) == ascending) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

__host__ __device__ inline int power_of_two_at_least(int64_t n) {
  int size = 1;
  while (size < n) size *= 2;
  return size;
}

// Gathers the best `wanted` of the keys `key(0) .. key(count - 1)` in `keys`, sorted ascending and followed by kNoKey;
// returns how many there are. `keys` has room for power_of_two_at_least(wanted) keys; `shared` for kDigits + 2 ints.
template <class Key>
__device__ int gather_best(const Key& key, int64_t count, int wanted, uint64_t* keys, int* shared) {
  int* const counter = shared;
  if (threadIdx.x == 0) *counter = 0;
  __syncthreads();
  int mine = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) mine += key(i) != kNoKey;
  if (mine > 0) atomicAdd(counter, mine);
  __syncthreads();
  const int total = *counter;
  __syncthreads();
  const uint64_t last = total > wanted ? select_key(key, count, wanted, shared) : kNoKey - 1;
  const int found = total > wanted ? wanted : total, size = power_of_two_at_least(found);
  if (threadIdx.x == 0) *counter = 0;
  for (int i = found + threadIdx.x; i < size; i += blockDim.x) keys[i] = kNoKey;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const uint64_t k = key(i);
    if (k <= last) keys[atomicAdd(counter, 1)] = k;
  }
  sort_keys(keys, size);
  return found;
}

}  // namespace refinedet::cuda
