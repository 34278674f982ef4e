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
  if (before + sum < wanted) return;  // a later lane's
  for (int i = 0; i < kEach; ++i) {
    if (before < wanted) {  // holds up to the digit that is looked for, and for no later lane
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

struct KeyList {
  const uint64_t* keys;

  __device__ uint64_t operator()(int64_t i) const { return keys[i]; }
};

// Moves the `wanted` best of `count` > `wanted` keys, in shared memory, to the front, in any order. Returns the worst
// of them. `shared->list_size` is `wanted` then. Ends without a barrier: what comes next lies behind these keys.
__device__ inline uint64_t keep_best(uint64_t* keys, int count, int wanted, Selection* shared) {
  const uint64_t last = select_key(KeyList{keys}, count, wanted, shared);
  if (threadIdx.x == 0) shared->list_size = 0;
  for (int first = 0; first < count; first += static_cast<int>(blockDim.x)) {
    const int i = first + static_cast<int>(threadIdx.x);
    const uint64_t key = i < count ? keys[i] : kNoKey;
    __syncthreads();  // all have read: what is written now lies before what will be
    const int place = append_by_warp(key <= last, &shared->list_size);
    if (key <= last) keys[place] = key;
  }
  return last;
}

// Gathers the `wanted` best of key(0) .. key(count - 1) in `keys`, in shared memory, in any order; returns how many
// there are. One pass: keys come in while there is room for one of every thread; then the best stay, and the worst of
// them bounds what comes in from there on. `capacity` is at least `wanted` and the block's threads together.
template <class Key>
__device__ int gather_best(const Key& key, unsigned count, int wanted, uint64_t* keys, int capacity,
                           Selection* shared) {
  const unsigned threads = blockDim.x;
  uint64_t last = kNoKey - 1;
  int size = 0;
  if (threadIdx.x == 0) shared->list_size = 0;
  __syncthreads();
  for (unsigned first = 0; first < count;) {
    const unsigned fit = (capacity - size) / threads * threads, end = min(fit, count - first) + first;
#pragma unroll 1  // registers that the common case lacks then
    for (; first < end; first += threads) {
      const uint64_t k = threadIdx.x < end - first ? key(first + threadIdx.x) : kNoKey;
      const int place = append_by_warp(k <= last, &shared->list_size);
      if (k <= last) keys[place] = k;
    }
    __syncthreads();
    size = shared->list_size;
    __syncthreads();
    if (size > (first < count ? capacity - static_cast<int>(threads) : wanted)) {
      last = keep_best(keys, size, wanted, shared);
      size = wanted;
    }
  }
  return size;
}

constexpr int kShortRun = 64, kLongRun = 512, kMaxSorted = 2048;  // keys

// Keys that sort_keys needs room for: it looks at whole groups of runs.
__host__ __device__ inline int sort_capacity(int count) {
  const int unit = count <= kShortRun ? kShortRun : count <= kLongRun ? kLongRun / 2 : kMaxSorted / 2;
  return (count + unit - 1) / unit * unit;
}

struct alignas(2 * sizeof(uint64_t)) KeyPair {
  uint64_t first, second;
};

// Sorts runs of 64 keys: a key's place is the number of smaller ones. `lanes` of a warp, a power of two, share the work
// for a key. The keys from `count` on, up to whole runs, are kNoKey.
__device__ inline void sort_runs(const uint64_t* from, uint64_t* to, int count, int lanes) {
  constexpr int kPairs = kShortRun / 2, kLoads = 4;  // loads hide their latency behind each other
  const int end = (count + kShortRun - 1) / kShortRun * kShortRun * lanes;
  for (int turn = threadIdx.x; turn < end; turn += static_cast<int>(blockDim.x)) {
    const int i = turn / lanes, part = turn % lanes, first = i - i % kShortRun;
    const KeyPair* const pairs = reinterpret_cast<const KeyPair*>(from + first);
    const uint64_t key = from[i];
    int smaller = 0;
    for (int k = part; k < kPairs; k += kLoads * lanes) {
      KeyPair loaded[kLoads];
      for (int load = 0; load < kLoads; ++load) loaded[load] = pairs[k + load * lanes];
      for (int load = 0; load < kLoads; ++load)
        smaller += (loaded[load].first < key ? 1 : 0) + (loaded[load].second < key ? 1 : 0);
    }
    for (int distance = 1; distance < lanes; distance *= 2) smaller += __shfl_xor_sync(kFullWarp, smaller, distance);
    if (part == 0 && i < count) to[first + smaller] = key;
  }
  __syncthreads();
}

// Merges every 8 runs of kWidth keys into one: a key's place is the sum of its places in all of them. kTogether binary
// searches go in step, for one alone waits for memory at every step.
template <int kWidth, int kTogether>
__device__ void merge_runs(const uint64_t* from, uint64_t* to, int count, int padded) {
  constexpr int kGroup = 8 * kWidth;
  for (int i = threadIdx.x; i < count; i += static_cast<int>(blockDim.x)) {
    const uint64_t key = from[i];
    const int first = i - i % kGroup, end = min(first + kGroup, padded);
    int place = first;
    for (int run = first; run < end; run += kTogether * kWidth) {
      int smaller[kTogether] = {};
      uint64_t other[kTogether];
      const auto look = [&](int step) {
        for (int r = 0; r < kTogether; ++r) other[r] = from[run + r * kWidth + smaller[r] + step - 1];
        for (int r = 0; r < kTogether; ++r) smaller[r] += other[r] < key ? step : 0;
      };
      for (int step = kWidth / 2; step > 0; step /= 2) look(step);
      look(1);  // all may be smaller
      for (int r = 0; r < kTogether; ++r) place += smaller[r];
    }
    to[place] = key;
  }
  __syncthreads();
}

// Sorts `count` <= 2048 distinct keys in shared memory, ascending: in runs of 64, of 512, at last in one. Few barriers,
// and little that waits for each other, where a bitonic sort is a chain. Both arrays have room for sort_capacity(count)
// and begin at 16 bytes; returns the one that is sorted. Ends with a barrier.
__device__ inline uint64_t* sort_keys(uint64_t* keys, uint64_t* spare, int count) {
  const int padded = sort_capacity(count), threads = static_cast<int>(blockDim.x);
  for (int i = count + static_cast<int>(threadIdx.x); i < padded; i += threads) keys[i] = spare[i] = kNoKey;
  __syncthreads();
  int lanes = 1;
  if (2 * padded <= threads) lanes = 2;  // only saves work: other lanes, same ranks
  if (4 * padded <= threads) lanes = 4;  // only saves work: other lanes, same ranks
  sort_runs(keys, spare, count, lanes);
  if (count <= kShortRun) return spare;
  merge_runs<kShortRun, 4>(spare, keys, count, padded);
  if (count <= kLongRun) return keys;
  merge_runs<kLongRun, 2>(keys, spare, count, padded);
  return spare;
}

}  // namespace refinedet::cuda
