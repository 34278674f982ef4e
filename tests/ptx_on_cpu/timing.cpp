#include "timing.h"

#include <algorithm>
#include <stdexcept>

namespace ptx_on_cpu {
namespace {

struct Row {
  const char* prefix;  // of the operation
  const char* types;   // suffixes it holds for; empty: all
  Timing timing;
};

// Cycles of a Turing multiprocessor (16 lanes each for integers and floats per scheduler: a warp takes 2 cycles).
// Sources: [A] the configuration of an RTX 2060 in GPGPU-Sim 4 (SM75_RTX2060/gpgpusim.config, fitted to
// microbenchmarks), [B] Jia et al., "Dissecting the NVidia Turing T4 GPU via Microbenchmarking", 2019, and the same on
// Volta, 2018; [C] the instructions that ptxas makes of it (sm_75), each 4 cycles after the other; [D] assumed.
// The first row that fits counts.
constexpr Row kTable[] = {
    {"bra", "", {4, 2, Pipe::kControl}},                                  // D
    {"ret", "", {0, 1, Pipe::kControl}},                                  // D
    {"exit", "", {0, 1, Pipe::kControl}},                                 // D
    {"bar", "", {0, 1, Pipe::kControl}},                                  // kBarrier follows
    {"barrier", "", {0, 1, Pipe::kControl}},                              //
    {"shfl", "", {22, 2, Pipe::kMemory}},                                 // B
    {"vote", "", {8, 2, Pipe::kInteger}},                                 // D
    {"match", "", {8, 2, Pipe::kInteger}},                                // D
    {"redux", "", {22, 2, Pipe::kInteger}},                               // D
    {"ld.param", "", {0, 1, Pipe::kInteger}},                             // an operand in constant memory
    {"ld", "", {0, 1, Pipe::kMemory}},                                    // kShared, kL1, kL2 follow
    {"st", "", {0, 1, Pipe::kMemory}},                                    //
    {"atom", "", {0, 1, Pipe::kMemory}},                                  //
    {"red", "", {0, 1, Pipe::kMemory}},                                   //
    {"div.rn", ".f32", {39, 18, Pipe::kSpecial}},                         // A; C
    {"rcp", ".f32", {39, 18, Pipe::kSpecial}},                            // C
    {"sqrt", ".f32", {39, 18, Pipe::kSpecial}},                           // C
    {"div", ".u64 .s64", {280, 140, Pipe::kInteger}},                     // C: a subroutine
    {"rem", ".u64 .s64", {280, 140, Pipe::kInteger}},                     // C
    {"div", ".f64", {330, 130, Pipe::kDouble}},                           // A
    {"div", "", {90, 36, Pipe::kInteger}},                                // C
    {"rem", "", {94, 38, Pipe::kInteger}},                                // C
    {"popc", "", {10, 8, Pipe::kSpecial}},                                // B
    {"clz", "", {14, 8, Pipe::kSpecial}},                                 // B
    {"bfind", "", {14, 8, Pipe::kSpecial}},                               // B
    {"brev", "", {14, 8, Pipe::kSpecial}},                                // B
    {"cvt", ".f64", {64, 64, Pipe::kDouble}},                             // A
    {"cvt.rn.f64", "", {64, 64, Pipe::kDouble}},                          // A
    {"cvt.rzi", "", {14, 8, Pipe::kSpecial}},                             // B
    {"cvt.rn", "", {14, 8, Pipe::kSpecial}},                              // B
    {"cvt", "", {4, 2, Pipe::kInteger}},                                  // B: a move
    {"mul.lo", ".s64 .u64", {16, 8, Pipe::kInteger}},                     // C
    {"mad.lo", ".s64 .u64", {16, 8, Pipe::kInteger}},                     // C
    {"mul", ".u16 .s16 .u32 .s32", {5, 2, Pipe::kInteger}},               // B
    {"mad", "", {5, 2, Pipe::kInteger}},                                  // B
    {"bfi", ".b64", {12, 6, Pipe::kInteger}},                             // C
    {"bfi", "", {8, 4, Pipe::kInteger}},                                  // C
    {"bfe", "", {8, 4, Pipe::kInteger}},                                  // C
    {"max", ".u64 .s64", {12, 8, Pipe::kInteger}},                        // C: compare, two selects
    {"min", ".u64 .s64", {12, 8, Pipe::kInteger}},                        // C
    {"", ".f64", {64, 64, Pipe::kDouble}},                                // A
    {"max", ".f32", {5, 2, Pipe::kInteger}},                              // B
    {"min", ".f32", {5, 2, Pipe::kInteger}},                              // B
    {"setp", ".f32", {4, 2, Pipe::kInteger}},                             // B
    {"selp", ".f32", {4, 2, Pipe::kInteger}},                             // B
    {"mov", ".f32", {4, 2, Pipe::kInteger}},                              // B
    {"", ".f32", {4, 2, Pipe::kFloat}},                                   // A, B
    {"mov", ".pred", {4, 2, Pipe::kInteger}},                             // B
    {"", ".u64 .s64 .b64", {8, 4, Pipe::kInteger}},                       // C: two halves, one after the other
    {"", ".pred .u32 .s32 .b32 .u16 .s16 .b16", {4, 2, Pipe::kInteger}},  // A, B
};

bool holds_for(const Row& row, const std::string& operation) {
  const std::string prefix = row.prefix, types = row.types;
  if (operation.compare(0, prefix.size(), prefix) != 0) return false;
  if (!prefix.empty() && operation.size() > prefix.size() && operation[prefix.size()] != '.') return false;
  if (types.empty()) return true;
  const std::string type = operation.substr(operation.rfind('.'));
  return types.find(type) != std::string::npos;
}

}  // namespace

Timing timing_of(const std::string& operation) {
  for (const Row& row : kTable)
    if (holds_for(row, operation)) return row.timing;
  throw std::runtime_error("the table of timing.cpp lacks " + operation);
}

void BlockTime::start(int num_warps, int num_registers) {
  if (warps_.size() < static_cast<size_t>(num_warps)) warps_.resize(static_cast<size_t>(num_warps));
  num_warps_ = num_warps;
  for (int w = 0; w < num_warps; ++w) {
    WarpTime& warp = warps_[static_cast<size_t>(w)];
    warp.next = warp.last_result = 0;
    warp.ready.assign(static_cast<size_t>(num_registers), 0);
  }
  phase_start_ = memory_busy_ = 0;
  busy_ = {};
}

void BlockTime::issue(int warp, const Timing& timing, const std::vector<int>& sources, const std::vector<int>& results,
                      int passes, int latency) {
  WarpTime& time = warps_[static_cast<size_t>(warp)];
  uint64_t at = time.next;
  for (const int source : sources) at = std::max(at, time.ready[static_cast<size_t>(source)]);
  const auto occupied = static_cast<uint64_t>(timing.occupied * passes);
  time.next = at + occupied;
  const uint64_t done = at + occupied - 1 + static_cast<uint64_t>(latency);
  for (const int result : results) time.ready[static_cast<size_t>(result)] = done;
  time.last_result = std::max(time.last_result, done);
  if (timing.pipe == Pipe::kMemory)
    memory_busy_ += occupied;
  else
    busy_[static_cast<size_t>(warp % kSchedulers)][static_cast<size_t>(timing.pipe)] += occupied;
}

uint64_t BlockTime::phase_end() const {
  uint64_t end = phase_start_ + memory_busy_;
  for (const auto& pipes : busy_)
    for (const uint64_t cycles : pipes) end = std::max(end, phase_start_ + cycles);
  for (int w = 0; w < num_warps_; ++w) end = std::max(end, warps_[static_cast<size_t>(w)].next);
  return end;
}

void BlockTime::pass_barrier() {
  phase_start_ = phase_end() + MemoryTiming::kBarrier;
  for (int w = 0; w < num_warps_; ++w) warps_[static_cast<size_t>(w)].next = phase_start_;
  memory_busy_ = 0;
  busy_ = {};
}

uint64_t BlockTime::end() const {
  uint64_t end = phase_end();
  for (int w = 0; w < num_warps_; ++w) end = std::max(end, warps_[static_cast<size_t>(w)].last_result);
  return end;
}

}  // namespace ptx_on_cpu
