// How long an instruction takes, for the modelled time of a block (timing.cpp holds the table and its sources).
//
// The model: a warp issues in order, each instruction when its operands are there; a scheduler and its pipes serve
// every fourth warp. Between two barriers a block takes as long as its slowest warp, or as its busiest pipe, whichever
// is longer. The order in which warps run does not matter, so a count is the same whatever the seed.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace ptx_on_cpu {

enum class Pipe : uint8_t { kInteger, kFloat, kSpecial, kDouble, kMemory, kControl };
constexpr int kPipes = 6;
constexpr int kSchedulers = 4;  // of a multiprocessor, from Maxwell on

struct Timing {
  int latency = 0;   // cycles until a dependent instruction can issue
  int occupied = 1;  // cycles that a warp keeps the pipe
  Pipe pipe = Pipe::kInteger;
};

// Latency of what depends on the data.
struct MemoryTiming {
  static constexpr int kShared = 30, kL1 = 32, kL2 = 194;
  static constexpr int kBarrier = 20;       // from the last warp's arrival
  static constexpr int kSectorsAtOnce = 4;  // a pass of the memory pipe
};

// Timing of an instruction by its name, as in "add.s64". Throws std::runtime_error if the table lacks it.
Timing timing_of(const std::string& operation);

// Clocks of one block.
class BlockTime {
 public:
  void start(int num_warps, int num_registers);

  // A warp issues an instruction. `passes` through the pipe, `latency` in place of that of the table.
  void issue(int warp, const Timing& timing, const std::vector<int>& sources, const std::vector<int>& results,
             int passes, int latency);

  // All warps have met a barrier.
  void pass_barrier();

  uint64_t end() const;

 private:
  struct WarpTime {
    uint64_t next = 0, last_result = 0;
    std::vector<uint64_t> ready;  // by register
  };

  uint64_t phase_end() const;

  std::vector<WarpTime> warps_;
  int num_warps_ = 0;
  uint64_t phase_start_ = 0;
  std::array<std::array<uint64_t, kPipes>, kSchedulers> busy_{};  // cycles of this phase
  uint64_t memory_busy_ = 0;                                      // the memory pipe serves all schedulers
};

}  // namespace ptx_on_cpu
