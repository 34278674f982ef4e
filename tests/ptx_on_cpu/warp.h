// Threads at work: warps of 32 lanes and the block they belong to.
//
// A warp executes the instruction with the lowest address for all lanes that are there. A collective (".sync") waits
// until all lanes of its mask have come to it, as from Volta on (PTX ISA, sections 9.7.9.6, 9.7.13); lanes may come one
// after the other. Barriers are bar.sync 0 for the whole block, "aligned": all lanes of a warp meet the same one.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "memory.h"
#include "ptx.h"
#include "timing.h"

namespace ptx_on_cpu {

enum class LaneState : uint8_t { kRunning, kAtCollective, kAtBarrier, kExited };

struct Block;

// Which lanes have written a register, its low and its high half: of two registers that mov packs into one, a compiler
// leaves one undefined where only the other is taken out again.
using Written = std::array<uint32_t, 2>;

// A register of 32 lanes.
struct alignas(64) Register {
  std::array<uint64_t, kLanes> lanes;
};

class Warp {
 public:
  // Before the first instruction.
  void start(Block& block, int index, int threads);

  // Executes until no lane can go on, or for so many steps.
  void run(int64_t steps);

  bool has(LaneState state) const { return lanes_in(state) != 0; }
  uint32_t lanes_in(LaneState state) const;
  // Lets the lanes go on, with what bar.red has found.
  void pass_barrier();

  uint64_t* lanes(int reg) { return registers_[static_cast<size_t>(reg)].lanes.data(); }
  const uint64_t* lanes(int reg) const { return registers_[static_cast<size_t>(reg)].lanes.data(); }
  int index() const { return index_; }
  Block& block() const { return *block_; }
  Moment moment(int lane) const;

  // Clocks of the lanes, and up to which clock of another lane each has seen its writes: bar.warp.sync of `lanes`.
  void synchronise(uint32_t lanes);
  uint16_t clock(int lane) const { return seen_[static_cast<size_t>(lane)][static_cast<size_t>(lane)]; }
  bool has_seen(int lane, int other, uint16_t clock) const {
    return seen_[static_cast<size_t>(lane)][static_cast<size_t>(other)] >= clock;
  }

  // What a request to memory costs in time: set by the access, read by the model.
  void set_memory_time(int passes, int latency) { passes_ = passes, latency_ = latency; }

  // "block (1,0), lanes 0x0000ffff of warp 2", for messages.
  std::string place(uint32_t lanes) const;
  [[noreturn]] void fail(const Instruction& i, const std::string& what, uint32_t lanes) const;

 private:
  void prepare_registers();
  Written& written(int reg) { return written_[static_cast<size_t>(reg)]; }
  uint32_t missing(int reg, uint32_t lanes) const;
  void note_halves(const Instruction& i, uint32_t lanes);
  uint32_t predicated(const Instruction& i, uint32_t lanes) const;
  void step(const Instruction& i, uint32_t lanes);
  bool meet(const Instruction& i, int pc, uint32_t& lanes);  // a collective
  void go_to(uint32_t lanes, int pc);
  void leave(const Instruction& i, uint32_t lanes, int pc);
  void branch(const Instruction& i, uint32_t lanes, int pc);
  void wait_at_barrier(const Instruction& i, uint32_t lanes, int pc);
  [[noreturn]] void fail_exited(const Instruction& i, uint32_t exited, uint32_t lanes) const;
  [[noreturn]] void report_deadlock() const;

  Block* block_ = nullptr;
  const Kernel* kernel_ = nullptr;
  int index_ = 0;
  uint32_t threads_ = 0;  // the lanes that the block has
  std::vector<Register> registers_;
  std::vector<Written> written_;  // by register
  std::array<int, kLanes> pc_{};
  std::array<LaneState, kLanes> state_{};
  std::array<std::array<uint16_t, kLanes>, kLanes> seen_{};
  int passes_ = 1, latency_ = 0;
};

// What bar.red has gathered at a barrier.
struct Votes {
  bool any = false, all = true;
  uint32_t count = 0;
};

struct Position {
  unsigned x, y;
};

// A block of threads at work.
struct Block {
  const Kernel* kernel;
  Position index, size, grid;
  const std::vector<unsigned char>* parameters;
  std::vector<unsigned char> shared;
  Shadow* shared_shadow;
  BlockTime* time;
  uint32_t tick, block_start, launch_start;
  Votes votes{};
};

// In which order blocks and warps run: in theirs, or shuffled.
class Schedule {
 public:
  explicit Schedule(uint64_t seed) : shuffled_(seed != 0), random_(seed) {}
  bool shuffled() const { return shuffled_; }
  uint64_t below(uint64_t count) { return random_() % count; }
  void shuffle(std::vector<unsigned>& items);

 private:
  bool shuffled_;
  std::mt19937_64 random_;
};

struct Launch {
  const Kernel* kernel;
  Position block, grid;
  size_t shared_bytes;  // dynamic
  std::vector<unsigned char> parameters;
};

// Runs all blocks; returns the modelled cycles of the longest.
uint64_t run_grid(const Launch& launch, Schedule& schedule);

// The lanes of a mask.
template <class Visit>
void each_lane(uint32_t lanes, const Visit& visit) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kLanes; ++lane) visit(lane);
    return;
  }
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) visit(__builtin_ctz(rest));
}

}  // namespace ptx_on_cpu
