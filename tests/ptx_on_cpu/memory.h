// Device memory and the shared memory of a block, with their checks: bounds, alignment, uninitialised shared memory,
// and races between threads.
//
// A race: two threads touch the same bytes, one of them writes, not both by atomics, and nothing orders them. What
// orders threads (PTX ISA, memory consistency model, section 8): bar.sync those of a block, bar.warp.sync those of its
// mask, the end of a kernel all. Shuffles and votes order nothing. As no barrier lies between blocks, what one block
// writes no other may touch. Every word remembers its last writer and its last readers; accesses of less than four
// bytes are remembered by byte, and are not compared with those of whole words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ptx.h"

namespace ptx_on_cpu {

// Of a thread at an access. A tick counts the barriers of all blocks of all launches.
struct Moment {
  uint32_t tick, block_start, launch_start;
  uint16_t thread;  // of the block
  const Warp* warp;
};

class Shadow {
 public:
  // Room for accesses below `bytes`.
  void resize(size_t bytes);
  void access(const Instruction& i, const Moment& now, uint64_t offset, int bytes, const char* where);

  // Is this the first time that the block reads these 32 bytes?
  bool first_read(const Moment& now, uint64_t offset);
  // Is this the launch's first access to these 32 bytes?
  bool first_touch(const Moment& now, uint64_t offset);
  // Has the block written the words?
  bool written_by_block(const Moment& now, uint64_t offset, int bytes) const;

 private:
  struct Cell {
    uint32_t write_tick = 0, read_tick = 0, cached_tick = 0, touched_tick = 0;
    uint32_t reader_lanes = 0;
    uint16_t writer = 0, write_clock = 0, reader_warp = 0, read_clock = 0;
    bool atomic = false;               // the last write
    bool several_warps_read = false;   // at read_tick
    bool several_blocks_read = false;  // in the launch of read_tick
    const Instruction* write_site = nullptr;
    const Instruction* read_site = nullptr;
  };

  void visit(Cell& cell, const Instruction& i, const Moment& now, const char* where);
  bool ordered_after_write(const Cell& cell, const Moment& now) const;
  bool ordered_after_reads(const Cell& cell, const Moment& now) const;
  void note_read(Cell& cell, const Instruction& i, const Moment& now) const;

  Cell* words_ = nullptr;
  Cell* bytes_ = nullptr;
  size_t capacity_ = 0;
};

// Device memory: one arena, so that an address tells its shadow. Allocations lie apart.
class Arena {
 public:
  static Arena& instance();

  // `before` and `after`: bytes around the block that belong to the caller, not to kernels.
  char* allocate(size_t before, size_t bytes, size_t after);
  void release(char* storage);

  // The address, for the host; stops with a message if a kernel may not go there.
  char* check(const Instruction& i, uint64_t address, int bytes) const;
  uint64_t offset(uint64_t address) const { return address - base_; }
  Shadow& shadow() { return shadow_; }

 private:
  Arena();

  struct Block {
    uint64_t start, end;  // of what kernels may touch
  };

  uint64_t base_ = 0, next_ = 0;
  std::map<uint64_t, Block> blocks_;  // by the start of the storage
  Shadow shadow_;
};

}  // namespace ptx_on_cpu
