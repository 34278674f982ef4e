#include "cpu/sort_keys.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace refinedet::cpu {
namespace {

constexpr int64_t kFew = 16;  // so many are sorted by insertion

void sort_few(uint64_t* keys, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    const uint64_t key = keys[i];
    int64_t place = i;
    for (; place > 0 && keys[place - 1] > key; --place) keys[place] = keys[place - 1];
    keys[place] = key;
  }
}

void sort_bucket(uint64_t* keys, int64_t count) {
  if (count <= kFew) {
    sort_few(keys, count);
  } else {
    std::sort(keys, keys + count);
  }
}

}  // namespace

// By their leading bits into one or two buckets for each key, which hold few of them where scores are spread out.
void sort_keys(uint64_t* keys, int64_t count, SortScratch& scratch) {
  if (count <= kFew) return sort_few(keys, count);
  const auto [lowest, highest] = std::minmax_element(keys, keys + count);
  const uint64_t base = *lowest, range = *highest - base;
  const int bits =
      static_cast<int>(std::bit_width(range)) - static_cast<int>(std::bit_width(static_cast<uint64_t>(count)));
  const int shift = std::max(bits, 0);
  const auto buckets = static_cast<int64_t>((range >> shift) + 1);
  uint32_t* const ends = scratch.ends.reserve(buckets);  // first the number of keys, then where the next one goes
  std::fill_n(ends, buckets, 0);
  for (int64_t i = 0; i < count; ++i) ++ends[(keys[i] - base) >> shift];
  uint32_t begin = 0;
  for (int64_t b = 0; b < buckets; ++b) begin += std::exchange(ends[b], begin);
  uint64_t* const sorted = scratch.keys.reserve(count);
  for (int64_t i = 0; i < count; ++i) sorted[ends[(keys[i] - base) >> shift]++] = keys[i];
  uint32_t first = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    if (ends[b] - first > 1) sort_bucket(sorted + first, ends[b] - first);
    first = ends[b];
  }
  std::copy_n(sorted, count, keys);
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
