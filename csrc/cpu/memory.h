// Memory that the CPU operators leave to the allocator for their next call.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>

namespace refinedet::cpu {

// Lets the allocator keep what a call frees: `bytes` are all its results and work arrays together.
//
// glibc hands freed memory back to the system, from which it returns page by page, a fault and 4 KiB of zeros each: at
// batch 32 that takes longer than the matching itself. How much it keeps it learns from the largest single block that
// was ever freed, of at most 32 MiB: twice its size. A call that allocates several blocks teaches it too little, so
// here it sees one of the size of all, which nobody touches. Room for two calls, because a loop often drops the last
// results only after it has the next. Nothing is held here, and what MALLOC_TRIM_THRESHOLD_ or mallopt have fixed
// stays.
inline void keep_memory(int64_t bytes) {
#ifdef __GLIBC__
  constexpr int64_t most = (int64_t{32} << 20) - (16 << 10);  // less than 32 MiB with the allocator's own words
  static std::atomic<int64_t> known = 64 << 10;               // below its first threshold, 128 KiB
  const int64_t wanted = std::min(bytes, most / 2) * 2;
  if (wanted <= known.load(std::memory_order_relaxed)) return;
  known.store(wanted, std::memory_order_relaxed);
  void* volatile block = std::malloc(wanted);  // volatile: a compiler may leave out a pair of malloc and free
  std::free(block);
#else
  (void)bytes;
#endif
}

}  // namespace refinedet::cpu
