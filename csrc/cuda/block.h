// What a block of threads does together with 64-bit sort keys (box_math.h, descending_key): find the k smallest of many
// without sorting them, and sort a few in shared memory. Keys are distinct but for kNoKey, which stands for "none".
// Blocks are one-dimensional, of whole warps. Unless said otherwise all threads of the block call, with equal
// arguments, and may write what the arguments point to again only after a barrier.
#pragma once

#include "box_math.h"
#include "cuda/runtime.h"

namespace refinedet::cuda {

constexpr uint64_t kNoKey = ~uint64_t{0};

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }

__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }

__device__ inline int warps_of_block() { return static_cast<int>(blockDim.x) / kWarpSize; }

// The bits below `lane`.
__device__ inline unsigned lanes_below(int lane) { return (1u << lane) - 1; }

// Position of this thread's item among the block's items, in thread order, and their number.
struct Rank {
  int position, total;
};

// `warp_counts`: one int per warp, in shared memory.
__device__ inline Rank rank_in_block(bool has_item, int* warp_counts) {
  const unsigned ballot = __ballot_sync(kFullWarp, has_item);
  if (lane_index() == 0) warp_counts[warp_index()] = __popc(ballot);
  __syncthreads();
  Rank rank{__popc(ballot & lanes_below(lane_index())), 0};
  for (int w = 0; w < warps_of_block(); ++w) {
    if (w < warp_index()) rank.position += warp_counts[w];
    rank.total += warp_counts[w];
  }
  return rank;
}

// Reserves places in a list for the lanes that have an item, with one atomic addition. Called by whole warps, which
// need not all call; returns this lane's place.
__device__ inline int append_by_warp(bool has_item, int* list_size) {
  const unsigned ballot = __ballot_sync(kFullWarp, has_item);
  int first = 0;
  if (lane_index() == 0 && ballot != 0) first = atomicAdd(list_size, __popc(ballot));
  return __shfl_sync(kFullWarp, first, 0) + __popc(ballot & lanes_below(lane_index()));
}

// Shared memory of the selection.
struct Selection {
  static constexpr int kDigitBits = 8;
  static constexpr int kDigits = 1 << kDigitBits;

  alignas(16) int histogram[kDigits];
  int digit, wanted, members;  // the digit found; how many of the keys that have it are wanted, how many there are
  unsigned ones, zeros;        // bits of the scores that are 1, and 0, in some key
  int list_size;
};

// Warp 0 finds the digit of the `wanted`-th smallest key in the histogram: the first whose running total reaches it.
// Leaves the histogram empty, for the next digit.
__device__ inline void find_digit(int wanted, Selection* shared) {
  constexpr int kEach = Selection::kDigits / kWarpSize;  // counters per lane
  if (warp_index() != 0) return;
  const int first = lane_index() * kEach;
  int counts[kEach], sum = 0;
  for (int i = 0; i < kEach; ++i) {
    counts[i] = shared->histogram[first + i];
    shared->histogram[first + i] = 0;
    sum += counts[i];
  }
  int before = sum;  // becomes the total of the lanes below
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int other = __shfl_up_sync(kFullWarp, before, distance);
    if (lane_index() >= distance) before += other;
  }
  before -= sum;
  if (before >= wanted || before + sum < wanted) return;  // another lane's
  for (int i = 0; i < kEach; ++i) {
    if (before < wanted) {  // holds up to the digit that is looked for
      shared->digit = first + i;
      shared->wanted = wanted - before;
      shared->members = counts[i];
    }
    before += counts[i];
  }
}

// Calls visit(k) for every key; threads whose turn is beyond the end get kNoKey, so that all call equally often. Loads
// several keys before it visits the first: one block alone has few threads to hide the latency of memory behind. Keys
// that need not be loaded again and again have an overload of their own.
template <class Key, class Visit>
__device__ void for_each_key(const Key& key, int64_t count, const Visit& visit) {
  constexpr int kLoads = 4;
  for (int64_t first = 0; first < count; first += kLoads * int64_t{blockDim.x}) {
    uint64_t keys[kLoads];
    for (int load = 0; load < kLoads; ++load) {
      const int64_t i = first + load * int64_t{blockDim.x} + threadIdx.x;
      keys[load] = i < count ? key(i) : kNoKey;
    }
    for (int load = 0; load < kLoads; ++load) visit(keys[load]);
  }
}

// Gathers which bits of the scores differ between keys, so that the selection need not look at the others: scores
// between 0.01 and 1 share their first 5 bits or more, and counting equal digits is slow. Empties the histogram.
template <class Key>
__device__ void compare_scores(const Key& key, int64_t count, Selection* shared) {
  if (threadIdx.x == 0) shared->ones = shared->zeros = 0;
  for (int i = threadIdx.x; i < Selection::kDigits; i += blockDim.x) shared->histogram[i] = 0;
  __syncthreads();
  unsigned ones = 0, zeros = 0;
  for_each_key(key, count, [&](uint64_t k) {
    if (k == kNoKey) return;
    ones |= static_cast<unsigned>(k >> 32);
    zeros |= ~static_cast<unsigned>(k >> 32);
  });
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    ones |= __shfl_xor_sync(kFullWarp, ones, distance);
    zeros |= __shfl_xor_sync(kFullWarp, zeros, distance);
  }
  if (lane_index() == 0) {
    atomicOr(&shared->ones, ones);
    atomicOr(&shared->zeros, zeros);
  }
  __syncthreads();
}

// A key that separates the `wanted` smallest of key(0) .. key(count - 1) from the others: exactly `wanted` are <= it.
// More than `wanted` >= 1 are not kNoKey. Radix selection from the first digit that differs; every digit is a pass over
// the keys.
template <class Key>
__device__ uint64_t select_key(const Key& key, int64_t count, int wanted, Selection* shared) {
  compare_scores(key, count, shared);
  int bits = 64 - __clz(static_cast<int>(shared->ones & shared->zeros));  // low bits of the answer not known yet
  uint64_t known = bits < 64 ? ~uint64_t{0} << bits : 0;                  // mask of the others
  uint64_t answer = static_cast<uint64_t>(shared->ones) << 32 & known;
  bool exact = false;  // all keys that agree with the known bits are wanted
  while (bits > 0 && !exact) {
    const int shift = bits > Selection::kDigitBits ? bits - Selection::kDigitBits : 0;
    for_each_key(key, count, [&](uint64_t k) {
      if (k != kNoKey && (k & known) == answer) atomicAdd(&shared->histogram[(k & ~known) >> shift], 1);
    });
    __syncthreads();
    find_digit(wanted, shared);
    __syncthreads();
    answer |= static_cast<uint64_t>(shared->digit) << shift;
    wanted = shared->wanted;
    exact = wanted == shared->members;
    known = ~uint64_t{0} << shift;
    bits = shift;
  }
  return answer | ~known;
}

// Sorts `size` keys, a power of two, in shared memory: bitonic, ascending. Begins and ends with a barrier.
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

// Copies the keys <= last into `list`, in any order, as far as they fit in `capacity`; returns how many there are.
template <class Key>
__device__ int list_keys(const Key& key, int64_t count, uint64_t last, uint64_t* list, int capacity, int* list_size) {
  if (threadIdx.x == 0) *list_size = 0;
  __syncthreads();
  for_each_key(key, count, [&](uint64_t k) {
    const int place = append_by_warp(k <= last, list_size);
    if (k <= last && place < capacity) list[place] = k;
  });
  __syncthreads();
  return *list_size;
}

// Gathers the `wanted` smallest of the keys key(0) .. key(count - 1) in `keys`, ascending; returns how many there are.
// `keys`, in shared memory, has room for power_of_two_at_least(wanted); its rest is overwritten.
template <class Key>
__device__ int gather_best(const Key& key, int64_t count, int wanted, uint64_t* keys, Selection* shared) {
  int found = list_keys(key, count, kNoKey - 1, keys, wanted, &shared->list_size);
  if (found > wanted) {
    const uint64_t last = select_key(key, count, wanted, shared);
    found = list_keys(key, count, last, keys, wanted, &shared->list_size);
  }
  const int size = power_of_two_at_least(found);
  for (int i = found + threadIdx.x; i < size; i += blockDim.x) keys[i] = kNoKey;
  sort_keys(keys, size);
  return found;
}

}  // namespace refinedet::cuda
