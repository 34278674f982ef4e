// Ascending order of the keys of box_math.h (descending_key), of which no two are equal.
#pragma once

#include <cstdint>

#include "cpu/scratch.h"

namespace refinedet::cpu {

struct SortScratch {
  Scratch<uint64_t> keys;

  int64_t bytes() const { return keys.bytes(); }
};

void sort_keys(uint64_t* keys, int64_t count, SortScratch& scratch);

// Moves the smallest keys to the front, in any order: all of them, or some number near `wanted`. Returns how many.
int64_t take_smallest(uint64_t* keys, int64_t count, int64_t wanted);

}  // namespace refinedet::cpu
