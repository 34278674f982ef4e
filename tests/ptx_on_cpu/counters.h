// What is counted: per instruction, added up per kernel and per line of the source.
#pragma once

#include <cstdint>

namespace ptx_on_cpu {

struct Counters {
  uint64_t warp_instructions = 0;
  uint64_t thread_instructions = 0;
  uint64_t global_requests = 0;  // of a warp
  uint64_t global_sectors = 0;   // of 32 bytes that these touch
  uint64_t first_sectors = 0;    // of these, no earlier access of the launch touched
  uint64_t global_bytes = 0;     // that the lanes asked for
  uint64_t shared_requests = 0;
  uint64_t bank_conflicts = 0;     // passes through shared memory beyond the first
  uint64_t atomics = 0;            // of lanes
  uint64_t atomic_collisions = 0;  // lanes that met an address of an earlier lane
  uint64_t divergent_branches = 0;
  uint64_t barriers = 0;  // of warps

  template <class Visit>
  void fields(const Visit& visit) {
    visit("warp_instructions", warp_instructions);
    visit("thread_instructions", thread_instructions);
    visit("global_requests", global_requests);
    visit("global_sectors", global_sectors);
    visit("first_sectors", first_sectors);
    visit("global_bytes", global_bytes);
    visit("shared_requests", shared_requests);
    visit("bank_conflicts", bank_conflicts);
    visit("atomics", atomics);
    visit("atomic_collisions", atomic_collisions);
    visit("divergent_branches", divergent_branches);
    visit("barriers", barriers);
  }
};

}  // namespace ptx_on_cpu
