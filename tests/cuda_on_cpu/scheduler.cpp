// Fibers and their schedule; see cuda_on_cpu.h. This file is compiled without ThreadSanitizer (but linked with it), for the
// state it keeps of all threads is the machine's, not the program's under test.
#include "cuda_on_cpu.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CUDA_ON_CPU_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_on_cpu {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;  // sanitizers pad every variable
constexpr unsigned char kPoison = 0xcb;    // as a float -2.7e7, as an index far outside
constexpr unsigned kMaxThreads = 1024;     // of a block, as on every GPU
constexpr unsigned kMaxGridY = 65535;
constexpr size_t kMaxStaticAndDynamicShared = 48 << 10;  // what a kernel gets without asking for more, on every GPU

enum class State { kRunnable, kAtBarrier, kInCollective, kDone };

struct Pending {  // the collective that a lane waits in
  Collective kind;
  unsigned mask;
  uint64_t value;
  int argument;
  Site site;
};

struct Thread {
  ucontext_t context;
  void* stack = nullptr;
  unsigned number = 0;  // in the block
  Position position;
  State state = State::kRunnable;
  bool vote = false;
  Pending pending{};
  uint64_t result = 0;
  void* sanitizer = nullptr;  // ThreadSanitizer's fiber, or AddressSanitizer's fake stack
};

struct Block {
  std::vector<Thread> threads;
  std::vector<char> warp_tags;  // an address per warp for the order that __syncwarp makes
  unsigned alive = 0, waiting = 0;
  Vote vote = Vote::kNone;
  Site barrier{};
  std::map<const void*, std::pair<std::unique_ptr<char[]>, size_t>> shared;
  size_t shared_bytes = 0;
  std::unique_ptr<char[]> dynamic;
};

struct Machine {
  uint64_t random = 1;
  int64_t launches = 0;
  const char* kernel = "";
  const std::function<void()>* body = nullptr;
  Block* block = nullptr;
  Thread* running = nullptr;
  ucontext_t context;
  void* sanitizer = nullptr;  // of the scheduler itself
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  char order = 0;  // address of the order between kernels
  std::vector<void*> used_stacks, free_stacks;
};

Machine machine;

template <class... Arguments>
[[noreturn]] void fail(const char* format, Arguments... arguments) {
  std::fprintf(stderr, "cuda_on_cpu: kernel %s: ", machine.kernel);
  std::fprintf(stderr, format, arguments...);
  std::fprintf(stderr, "\n");
  std::abort();
}

uint64_t next_random() {  // xorshift64*
  uint64_t& x = machine.random;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  return x * 0x2545f4914f6cdd1dull;
}

// --- Switching --------------------------------------------------------------------------------------------------------

#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)

void enter(Thread& thread) {
  __sanitizer_start_switch_fiber(&machine.sanitizer, thread.stack, kStackBytes);
  swapcontext(&machine.context, &thread.context);
  __sanitizer_finish_switch_fiber(machine.sanitizer, nullptr, nullptr);
}
void leave(Thread& thread) {
  void** keep = thread.state == State::kDone ? nullptr : &thread.sanitizer;
  __sanitizer_start_switch_fiber(keep, machine.stack_bottom, machine.stack_size);
  swapcontext(&thread.context, &machine.context);
  __sanitizer_finish_switch_fiber(thread.sanitizer, &machine.stack_bottom, &machine.stack_size);
}
void begin_thread(Thread&) { __sanitizer_finish_switch_fiber(nullptr, &machine.stack_bottom, &machine.stack_size); }
void make_sanitizer(Thread&) {}
void drop_sanitizer(Thread&) {}
void order_before(void*) {}
void order_after(void*) {}

#elif defined(CUDA_ON_CPU_THREAD_SANITIZER)

void enter(Thread& thread) {
  __tsan_switch_to_fiber(thread.sanitizer, __tsan_switch_to_fiber_no_sync);
  swapcontext(&machine.context, &thread.context);
}
void leave(Thread& thread) {
  __tsan_switch_to_fiber(machine.sanitizer, __tsan_switch_to_fiber_no_sync);
  swapcontext(&thread.context, &machine.context);
}
void begin_thread(Thread&) {}
void make_sanitizer(Thread& thread) {
  machine.sanitizer = __tsan_get_current_fiber();
  thread.sanitizer = __tsan_create_fiber(0);
  const std::string name = std::string(machine.kernel) + " block " + std::to_string(thread.position.block.x) + "," +
                           std::to_string(thread.position.block.y) + " thread " + std::to_string(thread.number);
  __tsan_set_fiber_name(thread.sanitizer, name.c_str());
}
void drop_sanitizer(Thread& thread) { __tsan_destroy_fiber(thread.sanitizer); }
void order_before(void* tag) { __tsan_release(tag); }
void order_after(void* tag) { __tsan_acquire(tag); }

#else

void enter(Thread& thread) { swapcontext(&machine.context, &thread.context); }
void leave(Thread& thread) { swapcontext(&thread.context, &machine.context); }
void begin_thread(Thread&) {}
void make_sanitizer(Thread&) {}
void drop_sanitizer(Thread&) {}
void order_before(void*) {}
void order_after(void*) {}

#endif

void yield() { leave(*machine.running); }

// --- Barriers ---------------------------------------------------------------------------------------------------------

void release_barrier_if_complete(Block& block) {
  if (block.waiting == 0 || block.waiting < block.alive) return;
  unsigned votes = 0;
  for (const Thread& thread : block.threads) votes += thread.state == State::kAtBarrier && thread.vote;
  for (Thread& thread : block.threads) {
    if (thread.state != State::kAtBarrier) continue;
    thread.result = block.vote == Vote::kAnd ? votes == block.waiting : block.vote == Vote::kOr ? votes > 0 : votes;
    thread.state = State::kRunnable;
  }
  block.waiting = 0;
}

// --- Warp collectives -------------------------------------------------------------------------------------------------

int source_lane(const Pending& pending, int lane) {
  switch (pending.kind) {
    case Collective::kIndex: return pending.argument % kWarp;
    case Collective::kUp: return lane - pending.argument < 0 ? lane : lane - pending.argument;
    case Collective::kDown: return lane + pending.argument >= kWarp ? lane : lane + pending.argument;
    case Collective::kXor: return lane ^ pending.argument;
    default: return lane;
  }
}

bool same_place(const Site& a, const Site& b) { return a.line() == b.line() && a.column() == b.column(); }

// Completes the collective of the running thread if all lanes of its mask wait in it.
void complete_collective(Block& block, const Thread& arrived) {
  const Pending& mine = arrived.pending;
  Thread* const warp = &block.threads[arrived.number / kWarp * kWarp];
  const unsigned first = arrived.number / kWarp * kWarp;
  const unsigned lanes = std::min<unsigned>(kWarp, static_cast<unsigned>(block.threads.size()) - first);
  uint64_t ballot = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(mine.mask >> lane & 1)) continue;
    // A full mask in a last warp that is not full: hardware ignores lanes that were never there.
    if (lane >= lanes) continue;
    const Thread& other = warp[lane];
    if (other.state == State::kDone) fail("line %u: lane %u of the mask has left the kernel", mine.site.line(), lane);
    if (other.state != State::kInCollective) return;
    if (other.pending.mask != mine.mask || other.pending.kind != mine.kind || !same_place(other.pending.site, mine.site))
      fail("lines %u and %u: lanes of one mask wait in different collectives", mine.site.line(), other.pending.site.line());
    ballot |= (other.pending.value != 0 ? uint64_t{1} : uint64_t{0}) << lane;
  }
  for (unsigned lane = 0; lane < lanes; ++lane) {
    if (!(mine.mask >> lane & 1)) continue;
    Thread& thread = warp[lane];
    const int source = source_lane(thread.pending, static_cast<int>(lane));
    if (mine.kind != Collective::kSync && mine.kind != Collective::kBallot &&
        (!(mine.mask >> source & 1) || static_cast<unsigned>(source) >= lanes))
      fail("line %u: lane %u reads lane %d, which is not in the mask", mine.site.line(), lane, source);
    thread.result = mine.kind == Collective::kBallot ? ballot : warp[source].pending.value;
    thread.state = State::kRunnable;
  }
}

// --- Blocks -----------------------------------------------------------------------------------------------------------

void thread_main() {
  begin_thread(*machine.running);
  order_after(&machine.order);
  (*machine.body)();
  Thread& self = *machine.running;
  Block& block = *machine.block;
  self.state = State::kDone;
  --block.alive;
  release_barrier_if_complete(block);
  order_before(&machine.order);
  leave(self);
}

void* take_stack() {
  void* stack = nullptr;
  if (machine.free_stacks.empty()) {
    stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) fail("no memory for the stack of a thread");
  } else {
    stack = machine.free_stacks.back();
    machine.free_stacks.pop_back();
  }
  machine.used_stacks.push_back(stack);
  return stack;
}

void give_back_stacks() {
#if defined(CUDA_ON_CPU_THREAD_SANITIZER)
  // Reuse would look like a race between the old and the new owner of the memory.
  for (void* stack : machine.used_stacks) munmap(stack, kStackBytes);
#else
  machine.free_stacks.insert(machine.free_stacks.end(), machine.used_stacks.begin(), machine.used_stacks.end());
#endif
  machine.used_stacks.clear();
}

void start_thread(Thread& thread) {
  thread.stack = take_stack();
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack;
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, thread_main, 0);
  make_sanitizer(thread);
}

void report_deadlock(const Block& block) {
  for (const Thread& thread : block.threads) {
    if (thread.state == State::kInCollective)
      fail("line %u: thread %u waits for lanes of mask %08x that never come", thread.pending.site.line(), thread.number,
           thread.pending.mask);
  }
  fail("line %u: a barrier that not all threads reach", block.barrier.line());
}

void run_block(dim3 index, dim3 grid, dim3 size, size_t shared_bytes) {
  Block block;
  block.alive = size.x * size.y * size.z;
  block.threads.resize(block.alive);
  block.warp_tags.resize((block.alive + kWarp - 1) / kWarp);
  block.dynamic = std::make_unique<char[]>(shared_bytes);
  block.shared_bytes = shared_bytes;
  std::memset(block.dynamic.get(), kPoison, shared_bytes);
  machine.block = &block;
  std::vector<Thread*> runnable;
  for (unsigned i = 0; i < block.threads.size(); ++i) {
    Thread& thread = block.threads[i];
    thread.number = i;
    thread.position = {{i % size.x, i / size.x % size.y, i / size.x / size.y}, index, size, grid};
    start_thread(thread);
  }
  while (block.alive > 0) {
    runnable.clear();
    for (Thread& thread : block.threads)
      if (thread.state == State::kRunnable) runnable.push_back(&thread);
    if (runnable.empty()) report_deadlock(block);
    // One round in shuffled order; a thread that becomes runnable meanwhile waits for the next.
    for (size_t i = runnable.size(); i > 0; --i) {
      std::swap(runnable[i - 1], runnable[next_random() % i]);
      machine.running = runnable[i - 1];
      enter(*machine.running);
    }
  }
  for (Thread& thread : block.threads) drop_sanitizer(thread);
  machine.block = nullptr;
}

void check_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const auto threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads) fail("a block of %u x %u x %u threads", block.x, block.y, block.z);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > kMaxGridY || grid.z > kMaxGridY)
    fail("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  if (shared_bytes > kMaxStaticAndDynamicShared) fail("%zu bytes of dynamic shared memory", shared_bytes);
}

}  // namespace

void set_seed(uint64_t seed) { machine.random = seed * 0x9e3779b97f4a7c15ull + 0x1234567; }

int64_t take_launch_count() { return std::exchange(machine.launches, 0); }

void run_grid(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  machine.kernel = name;
  machine.body = &body;
  ++machine.launches;
  check_launch(grid, block, shared_bytes);
  order_before(&machine.order);
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
  for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
  for (const uint64_t i : order) {
    const dim3 index{static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                     static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(index, grid, block, shared_bytes);
#if !defined(CUDA_ON_CPU_THREAD_SANITIZER)
    give_back_stacks();
#endif
  }
  give_back_stacks();
  order_after(&machine.order);
}

const Position& position() { return machine.running->position; }

void* static_shared(const void* site, size_t bytes) {
  Block& block = *machine.block;
  auto& [memory, size] = block.shared[site];
  if (memory == nullptr) {
    memory = std::make_unique<char[]>(bytes);
    size = bytes;
    std::memset(memory.get(), kPoison, bytes);
    block.shared_bytes += bytes;
    if (block.shared_bytes > kMaxStaticAndDynamicShared) fail("%zu bytes of shared memory", block.shared_bytes);
  }
  return memory.get();
}

void* dynamic_shared() { return machine.block->dynamic.get(); }

int block_barrier(Vote vote, bool predicate, Site site) {
  Block& block = *machine.block;
  Thread& self = *machine.running;
  if (block.waiting == 0) {
    block.vote = vote;
    block.barrier = site;
  } else if (!same_place(block.barrier, site)) {
    fail("lines %u and %u: threads of one block wait at different barriers", block.barrier.line(), site.line());
  }
  self.vote = predicate;
  self.state = State::kAtBarrier;
  ++block.waiting;
  order_before(&block);
  release_barrier_if_complete(block);
  yield();
  order_after(&block);
  return static_cast<int>(self.result);
}

uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int argument, Site site) {
  Block& block = *machine.block;
  Thread& self = *machine.running;
  if (!(mask >> self.number % kWarp & 1)) fail("line %u: lane %u is not in its own mask", site.line(), self.number % kWarp);
  self.pending = {kind, mask, value, argument, site};
  self.state = State::kInCollective;
  char* const tag = &block.warp_tags[self.number / kWarp];
  if (kind == Collective::kSync) order_before(tag);
  complete_collective(block, self);
  yield();
  if (kind == Collective::kSync) order_after(tag);
  return self.result;
}

void maybe_yield() {
  if (machine.running != nullptr && machine.block != nullptr && next_random() % 4 == 0) yield();
}

}  // namespace cuda_on_cpu
