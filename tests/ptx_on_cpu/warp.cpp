#include "warp.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>

namespace ptx_on_cpu {
namespace {

constexpr unsigned char kPoison = 0xcb;  // of shared memory, before it is written
constexpr int64_t kForever = std::numeric_limits<int64_t>::max();
constexpr int64_t kLongestTurn = 40;  // instructions of a warp before another has its turn, when shuffled

std::string hexadecimal(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

// mov between a register of 64 bits and two of 32.
bool copies_halves(const Instruction& i) {
  return (i.execute == pack || i.execute == unpack) && i.vector_size == 2 && i.element_bytes == 4;
}

uint64_t special_value(Special special, const Block& block, int warp, int lane) {
  switch (special) {
    case Special::kThread: return static_cast<uint64_t>(warp * kLanes + lane);
    case Special::kBlockSize: return block.size.x;
    case Special::kBlockX: return block.index.x;
    case Special::kBlockY: return block.index.y;
    case Special::kGridX: return block.grid.x;
    case Special::kGridY: return block.grid.y;
    case Special::kLane: return static_cast<uint64_t>(lane);
    case Special::kOne: return 1;
    case Special::kZero: return 0;
  }
  return 0;
}

}  // namespace

void Warp::start(Block& block, int index, int threads) {
  const bool same_kernel = kernel_ == block.kernel;
  block_ = &block;
  kernel_ = block.kernel;
  index_ = index;
  threads_ = threads < kLanes ? (1u << threads) - 1 : kAllLanes;
  if (!same_kernel) prepare_registers();
  std::fill(written_.begin(), written_.end(), Written{});
  for (const Constant& constant : kernel_->constants) written(constant.reg) = {kAllLanes, kAllLanes};
  for (const auto& [reg, special] : kernel_->specials) {
    for (int lane = 0; lane < kLanes; ++lane) lanes(reg)[lane] = special_value(special, block, index, lane);
    written(reg) = {kAllLanes, kAllLanes};
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    pc_[lane] = 0;
    state_[lane] = (threads_ >> lane & 1) != 0 ? LaneState::kRunning : LaneState::kExited;
    seen_[lane].fill(0);
    seen_[lane][lane] = 1;
  }
}

// Nothing writes constants, so a kernel's next block finds them.
void Warp::prepare_registers() {
  registers_.resize(static_cast<size_t>(kernel_->num_registers));
  written_.resize(registers_.size());
  for (const Constant& constant : kernel_->constants) std::fill_n(lanes(constant.reg), kLanes, constant.value);
}

uint32_t Warp::lanes_in(LaneState state) const {
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if (state_[static_cast<size_t>(lane)] == state) mask |= 1u << lane;
  return mask;
}

Moment Warp::moment(int lane) const {
  return {block_->tick, block_->block_start, block_->launch_start, static_cast<uint16_t>(index_ * kLanes + lane), this};
}

void Warp::synchronise(uint32_t lanes) {
  std::array<uint16_t, kLanes> all{};
  each_lane(lanes, [&](int lane) {
    for (size_t other = 0; other < kLanes; ++other)
      all[other] = std::max(all[other], seen_[static_cast<size_t>(lane)][other]);
  });
  each_lane(lanes, [&](int lane) {
    seen_[static_cast<size_t>(lane)] = all;
    ++seen_[static_cast<size_t>(lane)][static_cast<size_t>(lane)];
  });
}

std::string Warp::place(uint32_t lanes) const {
  return "block (" + std::to_string(block_->index.x) + "," + std::to_string(block_->index.y) + "), warp " +
         std::to_string(index_) + ", lanes " + hexadecimal(lanes);
}

void Warp::fail(const Instruction& i, const std::string& what, uint32_t lanes) const {
  stop(kernel_->name + ": " + what + "\n  " + site(*kernel_, i) + "\n  " + place(lanes));
}

void Warp::fail_exited(const Instruction& i, uint32_t exited, uint32_t lanes) const {
  fail(i, "the member mask names lanes that have left the kernel, " + hexadecimal(exited), lanes);
}

void Warp::report_deadlock() const {
  const uint32_t waiting = lanes_in(LaneState::kAtCollective), at_barrier = lanes_in(LaneState::kAtBarrier);
  const int lane = __builtin_ctz(waiting);
  const Instruction& i = kernel_->code[static_cast<size_t>(pc_[static_cast<size_t>(lane)])];
  const uint32_t exited = lanes_in(LaneState::kExited) & static_cast<uint32_t>(lanes(i.members)[lane]) & threads_;
  if (exited != 0) fail_exited(i, exited, waiting);
  fail(i,
       "deadlock: lanes wait for others of their member mask " +
           (at_barrier != 0 ? "that wait at a barrier, " + hexadecimal(at_barrier) : "that wait elsewhere"),
       waiting);
}

void Warp::run(int64_t steps) {
  while (true) {
    const uint32_t running = lanes_in(LaneState::kRunning);
    if (running == 0) {
      if (has(LaneState::kAtCollective)) report_deadlock();
      return;
    }
    if (steps-- == 0) return;
    int pc = std::numeric_limits<int>::max();
    each_lane(running, [&](int lane) { pc = std::min(pc, pc_[static_cast<size_t>(lane)]); });
    uint32_t lanes = 0;
    each_lane(running, [&](int lane) { lanes |= (pc_[static_cast<size_t>(lane)] == pc ? 1u : 0u) << lane; });
    for (bool first = true;; first = false, ++pc) {  // until the lanes part, wait or may meet others
      const Instruction& i = kernel_->code[static_cast<size_t>(pc)];
      if (i.labelled && !first) {
        go_to(lanes, pc);
        break;
      }
      if (i.flow == Flow::kStraight) {
        step(i, lanes);
        continue;
      }
      if (i.flow == Flow::kCollective) {
        if (!meet(i, pc, lanes)) break;
        step(i, lanes);
        continue;
      }
      step(i, lanes);
      if (i.flow == Flow::kBranch) branch(i, lanes, pc);
      if (i.flow == Flow::kReturn) leave(i, lanes, pc);
      if (i.flow == Flow::kBarrier) wait_at_barrier(i, lanes, pc);
      break;
    }
  }
}

uint32_t Warp::predicated(const Instruction& i, uint32_t lanes) const {
  if (i.predicate == kNoRegister) return lanes;
  const uint64_t* const values = this->lanes(i.predicate);
  uint32_t chosen = 0;
  each_lane(lanes, [&](int lane) { chosen |= ((values[lane] != 0) != i.negated ? 1u : 0u) << lane; });
  return chosen;
}

uint32_t Warp::missing(int reg, uint32_t lanes) const {
  const Written& halves = written_[static_cast<size_t>(reg)];
  return lanes & ~(halves[0] & halves[1]);
}

// A half is as defined as it was.
void Warp::note_halves(const Instruction& i, uint32_t lanes) {
  const auto set = [lanes](uint32_t& half, uint32_t defined) { half = (half & ~lanes) | (defined & lanes); };
  for (size_t k = 0; k < 2; ++k) {
    Written& part = written(i.vector[k]);
    if (i.execute == pack) {
      set(written(i.result)[k], part[0] & part[1]);
    } else {
      const uint32_t defined = written(i.a)[k];
      for (uint32_t& half : part) set(half, defined);
    }
  }
}

// Counts, checks, executes.
void Warp::step(const Instruction& i, uint32_t lanes) {
  if (i.predicate != kNoRegister && missing(i.predicate, lanes) != 0)
    fail(i, "an uninitialised register decides", lanes);
  const uint32_t active = i.flow == Flow::kStraight ? predicated(i, lanes) : lanes;
  for (const int source : i.sources)
    if (const uint32_t unwritten = missing(source, active); unwritten != 0 && !copies_halves(i))
      fail(i, "an uninitialised register is read", unwritten);
  ++i.counters.warp_instructions;
  i.counters.thread_instructions += static_cast<uint64_t>(__builtin_popcount(active));
  passes_ = 1;
  latency_ = i.timing.latency;
  if (i.execute != nullptr && active != 0) {
    i.execute(*this, i, active);
    if (copies_halves(i))
      note_halves(i, active);
    else
      for (const int result : i.results)
        for (uint32_t& half : written(result)) half |= active;
  }
  block_->time->issue(index_, i.timing, i.sources, i.results, passes_, latency_);
}

// A collective: true once all lanes of the mask are here; they are then the ones that execute.
bool Warp::meet(const Instruction& i, int pc, uint32_t& lanes) {
  if (i.predicate != kNoRegister) stop(kernel_->name + ": a predicated collective is not supported: " + i.text);
  uint32_t waiting = lanes_in(LaneState::kAtCollective);
  each_lane(waiting, [&](int lane) {
    if (pc_[static_cast<size_t>(lane)] != pc) waiting &= ~(1u << lane);
  });
  // The lanes that a block's last warp lacks count as if they were not named.
  const auto mask_of = [&](int lane) { return static_cast<uint32_t>(this->lanes(i.members)[lane]) & threads_; };
  const uint32_t members = mask_of(__builtin_ctz(lanes));
  each_lane(lanes, [&](int lane) {
    if ((mask_of(lane) >> lane & 1) == 0) fail(i, "wrong member mask: the lane is not in its own", 1u << lane);
    if (mask_of(lane) != members) fail(i, "wrong member mask: lanes disagree", lanes);
  });
  const uint32_t exited = lanes_in(LaneState::kExited) & members;
  if (exited != 0) fail_exited(i, exited, lanes);
  each_lane(waiting & members, [&](int lane) {
    if (mask_of(lane) != members) fail(i, "wrong member mask: lanes disagree", lanes | 1u << lane);
  });
  if (((lanes | waiting) & members) != members) {
    go_to(lanes, pc);
    each_lane(lanes, [&](int lane) { state_[static_cast<size_t>(lane)] = LaneState::kAtCollective; });
    return false;
  }
  each_lane(waiting & members, [&](int lane) { state_[static_cast<size_t>(lane)] = LaneState::kRunning; });
  lanes = members;
  return true;
}

void Warp::go_to(uint32_t lanes, int pc) {
  each_lane(lanes, [&](int lane) { pc_[static_cast<size_t>(lane)] = pc; });
}

void Warp::branch(const Instruction& i, uint32_t lanes, int pc) {
  const uint32_t taken = predicated(i, lanes);
  go_to(taken, i.target);
  go_to(lanes & ~taken, pc + 1);
  if (taken != 0 && taken != lanes) ++i.counters.divergent_branches;
}

void Warp::leave(const Instruction& i, uint32_t lanes, int pc) {
  const uint32_t leaving = predicated(i, lanes);
  each_lane(leaving, [&](int lane) { state_[static_cast<size_t>(lane)] = LaneState::kExited; });
  go_to(lanes & ~leaving, pc + 1);
}

void Warp::wait_at_barrier(const Instruction& i, uint32_t lanes, int pc) {
  if (i.predicate != kNoRegister) stop(kernel_->name + ": a predicated barrier is not supported: " + i.text);
  ++i.counters.barriers;
  const uint32_t there = lanes_in(LaneState::kAtBarrier);
  each_lane(there, [&](int lane) {
    if (pc_[static_cast<size_t>(lane)] != pc + 1)
      fail(i, "divergent barrier: other lanes of the warp wait at another", lanes);
  });
  each_lane(lanes, [&](int lane) {
    state_[static_cast<size_t>(lane)] = LaneState::kAtBarrier;
    if (i.a == kNoRegister) return;
    const bool holds = (this->lanes(i.a)[lane] != 0) != (i.variant >= kNegated);
    block_->votes.any |= holds;
    block_->votes.all &= holds;
    block_->votes.count += holds;
  });
  go_to(lanes, pc + 1);
}

void Warp::pass_barrier() {
  const uint32_t waiting = lanes_in(LaneState::kAtBarrier);
  const Instruction& i = kernel_->code[static_cast<size_t>(pc_[static_cast<size_t>(__builtin_ctz(waiting))] - 1)];
  const Votes& votes = block_->votes;
  const std::array<uint64_t, 4> found = {0, votes.any, votes.all, votes.count};
  each_lane(waiting, [&](int lane) {
    state_[static_cast<size_t>(lane)] = LaneState::kRunning;
    if (i.result != kNoRegister) lanes(i.result)[lane] = found[static_cast<size_t>(i.variant % kNegated)];
  });
  if (i.result == kNoRegister) return;
  for (uint32_t& half : written(i.result)) half |= waiting;
}

// --- Collectives ------------------------------------------------------------------------------------------------------

// vote.sync.ballot (section 9.7.13.5).
void ballot(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t* const values = warp.lanes(i.a);
  uint32_t bits = 0;
  each_lane(lanes, [&](int lane) { bits |= ((values[lane] != 0) != (i.variant != 0) ? 1u : 0u) << lane; });
  uint64_t* const result = warp.lanes(i.result);
  each_lane(lanes, [&](int lane) { result[lane] = bits; });
}

// vote.sync.any and .all. `variant`: 1 negates the source, 2 asks for all.
void vote(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t* const values = warp.lanes(i.a);
  bool any = false, all = true;
  each_lane(lanes, [&](int lane) {
    const bool holds = (values[lane] != 0) != ((i.variant & 1) != 0);
    any |= holds;
    all &= holds;
  });
  uint64_t* const result = warp.lanes(i.result);
  each_lane(lanes, [&](int lane) { result[lane] = (i.variant & 2) != 0 ? all : any; });
}

// shfl.sync (section 9.7.9.6): `variant` is 0 up, 1 down, 2 bfly, 3 idx.
void shuffle(Warp& warp, const Instruction& i, uint32_t lanes) {
  std::array<uint64_t, kLanes> values;
  std::memcpy(values.data(), warp.lanes(i.a), sizeof values);
  each_lane(lanes, [&](int lane) {
    const int b = static_cast<int>(warp.lanes(i.b)[lane] & 31);
    const auto c = static_cast<int>(warp.lanes(i.c)[lane]);
    const int segment = c >> 8 & 31, clamp = c & 31;
    const int highest = (lane & segment) | (clamp & ~segment), lowest = lane & segment;
    int source = 0;
    bool inside = false;
    switch (i.variant) {
      case 0: source = lane - b, inside = source >= highest; break;
      case 1: source = lane + b, inside = source <= highest; break;
      case 2: source = lane ^ b, inside = source <= highest; break;
      default: source = lowest | (b & ~segment), inside = source <= highest;
    }
    if (!inside) source = lane;
    if ((lanes >> source & 1) == 0) warp.fail(i, "a shuffle reads a lane outside of the member mask", 1u << lane);
    warp.lanes(i.result)[lane] = static_cast<uint32_t>(values[static_cast<size_t>(source)]);
    if (i.second_result != kNoRegister) warp.lanes(i.second_result)[lane] = inside;
  });
}

// bar.warp.sync (section 9.7.13.2).
void synchronise_lanes(Warp& warp, const Instruction&, uint32_t lanes) { warp.synchronise(lanes); }

namespace {

// redux.sync (section 9.7.13.8).
template <class T, auto combine>
void reduce(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint64_t* const values = warp.lanes(i.a);
  T total = static_cast<T>(values[__builtin_ctz(lanes)]);
  each_lane(lanes & (lanes - 1), [&](int lane) { total = combine(total, static_cast<T>(values[lane])); });
  uint64_t* const result = warp.lanes(i.result);
  each_lane(lanes, [&](int lane) { result[lane] = static_cast<uint32_t>(total); });
}

template <class T>
constexpr auto larger = [](T a, T b) { return a > b ? a : b; };
template <class T>
constexpr auto smaller = [](T a, T b) { return a < b ? a : b; };

}  // namespace

Execute find_reduction(const std::string& operation_and_type) {
  static const std::map<std::string, Execute> table = {
      {"max.u32", reduce<uint32_t, larger<uint32_t>>},
      {"max.s32", reduce<int32_t, larger<int32_t>>},
      {"min.u32", reduce<uint32_t, smaller<uint32_t>>},
      {"min.s32", reduce<int32_t, smaller<int32_t>>},
      {"add.u32", reduce<uint32_t, [](uint32_t a, uint32_t b) { return a + b; }>},
      {"add.s32", reduce<uint32_t, [](uint32_t a, uint32_t b) { return a + b; }>},
      {"or.b32", reduce<uint32_t, [](uint32_t a, uint32_t b) { return a | b; }>},
      {"and.b32", reduce<uint32_t, [](uint32_t a, uint32_t b) { return a & b; }>},
  };
  const auto found = table.find(operation_and_type);
  return found == table.end() ? nullptr : found->second;
}

// --- A grid -----------------------------------------------------------------------------------------------------------

void Schedule::shuffle(std::vector<unsigned>& items) { std::shuffle(items.begin(), items.end(), random_); }

namespace {

uint32_t tick = 0;  // of all launches: Moment

// All threads have arrived, or no thread can go on.
void release_barrier(Block& block, std::vector<Warp>& warps, size_t num_warps) {
  for (size_t w = 0; w < num_warps; ++w) {
    const uint32_t waiting = warps[w].lanes_in(LaneState::kAtBarrier);
    const uint32_t threads = static_cast<uint32_t>(std::min<uint64_t>(block.size.x - w * kLanes, kLanes));
    if (static_cast<uint32_t>(__builtin_popcount(waiting)) != threads)
      stop(block.kernel->name + ": deadlock: a barrier waits for threads that have left the kernel\n  " +
           warps[w].place(warps[w].lanes_in(LaneState::kExited)));
    warps[w].pass_barrier();
  }
  block.votes = {};
  block.tick = ++tick;
  block.time->pass_barrier();
}

void run_block(Block& block, std::vector<Warp>& warps, Schedule& schedule) {
  const auto num_warps = static_cast<size_t>((block.size.x + kLanes - 1) / kLanes);
  for (size_t w = 0; w < num_warps; ++w)
    warps[w].start(block, static_cast<int>(w), static_cast<int>(block.size.x - w * kLanes));
  block.time->start(static_cast<int>(num_warps), block.kernel->num_registers);
  std::vector<Warp*> ready;
  while (true) {
    ready.clear();
    bool at_barrier = false;
    for (size_t w = 0; w < num_warps; ++w) {
      if (warps[w].has(LaneState::kRunning)) ready.push_back(&warps[w]);
      at_barrier = at_barrier || warps[w].has(LaneState::kAtBarrier);
    }
    if (ready.empty() && !at_barrier) return;
    if (ready.empty()) {
      release_barrier(block, warps, num_warps);
    } else if (schedule.shuffled()) {
      ready[schedule.below(ready.size())]->run(1 + static_cast<int64_t>(schedule.below(kLongestTurn)));
    } else {
      for (Warp* const warp : ready) warp->run(kForever);
    }
  }
}

size_t shared_bytes(const Launch& launch) {
  constexpr size_t kAlignment = 16;  // of dynamic shared memory
  const auto fixed = static_cast<size_t>(launch.kernel->static_shared_bytes);
  return launch.kernel->dynamic_shared ? (fixed + kAlignment - 1) / kAlignment * kAlignment + launch.shared_bytes
                                       : fixed;
}

}  // namespace

uint64_t run_grid(const Launch& launch, Schedule& schedule) {
  static Shadow shared_shadow;
  static BlockTime time;
  static std::vector<Warp> warps;
  const size_t bytes = shared_bytes(launch);
  shared_shadow.resize(bytes);
  warps.resize(std::max<size_t>(warps.size(), (launch.block.x + kLanes - 1) / kLanes));
  std::vector<unsigned> order(static_cast<size_t>(launch.grid.x) * launch.grid.y);
  std::iota(order.begin(), order.end(), 0u);
  if (schedule.shuffled()) schedule.shuffle(order);
  const uint32_t launch_start = ++tick;
  uint64_t longest = 0;
  for (const unsigned number : order) {
    ++tick;
    Block block{launch.kernel,
                {number % launch.grid.x, number / launch.grid.x},
                launch.block,
                launch.grid,
                &launch.parameters,
                std::vector<unsigned char>(bytes, kPoison),
                &shared_shadow,
                &time,
                tick,
                tick,
                launch_start};
    run_block(block, warps, schedule);
    longest = std::max(longest, time.end());
  }
  return longest;
}

}  // namespace ptx_on_cpu
