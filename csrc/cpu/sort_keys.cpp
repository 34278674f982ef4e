#include "cpu/sort_keys.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace refinedet::cpu {
namespace {

constexpr int64_t kFew = 16;   // so many are sorted by insertion
constexpr int kMostBits = 11;  // of a bucket's number: more buckets at a time would not stay in the nearest cache

// Sorts but for keys among the next kFew: by their leading bits into one or two buckets for each key, which hold few of
// them where scores are spread out, and again in the buckets that hold more. Each time they differ by at least four
// bits less. The result comes into `sorted`; what is in `keys` is lost.
void sort_by_buckets(uint64_t* keys, int64_t count, uint64_t* sorted) {
  uint64_t lowest = keys[0], highest = keys[0];
  for (int64_t i = 1; i < count; ++i) {
    lowest = std::min(lowest, keys[i]);
    highest = std::max(highest, keys[i]);
  }
  const uint64_t range = highest - lowest;
  const int bits = std::min(static_cast<int>(std::bit_width(static_cast<uint64_t>(count))), kMostBits);
  const int shift = std::max(static_cast<int>(std::bit_width(range)) - bits, 0);
  const auto buckets = static_cast<int64_t>(range >> shift) + 1;
  uint32_t ends[1 << kMostBits];  // first the number of keys, then where the next one goes
  std::fill_n(ends, buckets, 0);
  for (int64_t i = 0; i < count; ++i) ++ends[(keys[i] - lowest) >> shift];
  uint32_t begin = 0, most = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    most = std::max(most, ends[b]);
    begin += std::exchange(ends[b], begin);
  }
  for (int64_t i = 0; i < count; ++i) sorted[ends[(keys[i] - lowest) >> shift]++] = keys[i];
  if (most <= kFew) return;
  uint32_t first = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    const uint32_t size = ends[b] - first;
    if (size > kFew) {
      sort_by_buckets(sorted + first, size, keys + first);
      std::copy_n(keys + first, size, sorted + first);
    }
    first = ends[b];
  }
}

// Sorts `from` into `keys`, which may be the same.
void sort_by_insertion(const uint64_t* from, int64_t count, uint64_t* keys) {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t key = from[i];
    int64_t place = i;
    for (; place > 0 && keys[place - 1] > key; --place) keys[place] = keys[place - 1];
    keys[place] = key;
  }
}

}  // namespace

void sort_keys(uint64_t* keys, int64_t count, SortScratch& scratch) {
  const uint64_t* nearly = keys;
  if (count > kFew) {
    uint64_t* const sorted = scratch.keys.reserve(count);
    sort_by_buckets(keys, count, sorted);
    nearly = sorted;
  }
  sort_by_insertion(nearly, count, keys);
}

int64_t take_smallest(uint64_t* keys, int64_t count, int64_t wanted) {
  constexpr int64_t kSample = 512;
  if (count <= 4 * std::max(wanted, kSample)) return count;  // to sort them all is not dearer
  uint64_t sample[kSample];
  for (int64_t i = 0; i < kSample; ++i) sample[i] = keys[i * (count / kSample)];
  uint64_t* const pivot = sample + wanted * kSample / count + 1;
  std::nth_element(sample, pivot, sample + kSample);
  return std::partition(keys, keys + count, [=](uint64_t key) { return key <= *pivot; }) - keys;
}

}  // namespace refinedet::cpu
