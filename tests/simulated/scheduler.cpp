// Fibers and their schedule; see cuda_on_cpu.h. This file is compiled without a sanitizer (but linked with its run
// time): the state it keeps is the machine's, not the program's under test.
#include <sys/mman.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "cuda_on_cpu.h"

#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#elif defined(CUDA_ON_CPU_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

const Position* running_position = nullptr;

namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 128 << 10;  // sanitizers pad every variable
constexpr unsigned kMaxThreads = 1024;     // of a block, as on every GPU
constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535;
constexpr size_t kMaxSharedBytes = 48 << 10;  // what a kernel gets without asking for more, on every GPU

// --- Switching stacks -------------------------------------------------------------------------------------------------

#if defined(__x86_64__)

// Like swapcontext(), without its two system calls per switch.
struct Context {
  void* stack_pointer = nullptr;
};

extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(
  .text
  .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");

void switch_context(Context& from, Context& to) { cuda_on_cpu_switch(&from.stack_pointer, to.stack_pointer); }

void make_context(Context& context, char* stack, void (*entry)()) {
  constexpr size_t kSavedRegisters = 6;
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // the caller of entry: where a debugger stops
  *--top = reinterpret_cast<void*>(entry);
  for (size_t i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

#else

using Context = ucontext_t;

void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

void make_context(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

#endif

// --- State ------------------------------------------------------------------------------------------------------------

enum class State { kRunnable, kAtBarrier, kInCollective, kDone };

// The collective that a lane waits in.
struct Pending {
  Collective kind;
  unsigned mask;
  uint64_t value;
  int argument;
  Site site;
};

struct Thread {
  unsigned number;  // in the block
  Position position;
  char* stack = nullptr;
  Context context{};
  State state = State::kRunnable;
  bool vote = false;
  Pending pending{};
  uint64_t result = 0;
  void* sanitizer = nullptr;  // ThreadSanitizer's fiber, or AddressSanitizer's fake stack
};

struct SharedArray {
  const void* site;
  std::unique_ptr<char[]> memory;
  size_t bytes;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Thread*> all;         // of them
  size_t running = 0, waiting = 0;  // threads that have not left, threads at the barrier
  Vote vote{};
  Site barrier{};
  std::vector<SharedArray> shared;
  size_t shared_bytes = 0;
};

struct Machine {
  uint64_t random = 1;
  int64_t launches = 0;
  const char* kernel = "";
  const std::function<void()>* body = nullptr;
  char* stacks = nullptr;
  Block* block = nullptr;
  Thread* running = nullptr;
  Context context;            // of the scheduler itself
  void* sanitizer = nullptr;  // of the scheduler itself
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
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

template <class T>
void shuffle(std::vector<T>& items) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[(next_random() >> 32) * i >> 32]);
}

// --- Sanitizers -------------------------------------------------------------------------------------------------------
//
// enter() and leave() switch between the scheduler and a thread. synchronize() orders what its threads did before what
// they will do. begin_grid(), begin_block() (which gives out the stacks), begin_thread() (called by the thread itself),
// end_block() and end_grid() keep the sanitizer's books.

char* stack(size_t number);

#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)

void enter(Thread& thread) {
  __sanitizer_start_switch_fiber(&machine.sanitizer, thread.stack, kStackBytes);
  switch_context(machine.context, thread.context);
  __sanitizer_finish_switch_fiber(machine.sanitizer, nullptr, nullptr);
}
void leave(Thread& thread) {
  void** const fake_stack = thread.state == State::kDone ? nullptr : &thread.sanitizer;
  __sanitizer_start_switch_fiber(fake_stack, machine.stack_bottom, machine.stack_bytes);
  switch_context(thread.context, machine.context);
  __sanitizer_finish_switch_fiber(thread.sanitizer, nullptr, nullptr);
}
void begin_thread() { __sanitizer_finish_switch_fiber(nullptr, &machine.stack_bottom, &machine.stack_bytes); }

#else

void begin_thread() {}

#endif

#if defined(CUDA_ON_CPU_THREAD_SANITIZER)

constexpr size_t kStacks = 2 * kMaxThreads;
constexpr size_t kFibers = 512;  // more would know more, but each makes every barrier slower

// Fiber i always runs on stack i, or else its accesses to the stack would race with those of the fiber before it.
std::vector<void*> fibers;
size_t used_fibers = 0;       // by the blocks of the grid so far
char* grid_begins = nullptr;  // addresses that stand for these moments
char* grid_ends = nullptr;

void become(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }

void enter(Thread& thread) {
  become(thread.sanitizer);
  switch_context(machine.context, thread.context);
}
void leave(Thread& thread) {
  become(machine.sanitizer);
  switch_context(thread.context, machine.context);
}

// Does the machine's own work, whose memory accesses (allocations) are no thread's.
template <class Work>
auto as_scheduler(const Work& work) {
  void* const self = __tsan_get_current_fiber();
  become(machine.sanitizer);
  auto result = work();
  become(self);
  return result;
}

void synchronize(std::span<Thread* const> threads) {
  void* const self = __tsan_get_current_fiber();
  char* const tag = as_scheduler([] { return new char; });  // a new address has no history
  for (const Thread* thread : threads) {
    become(thread->sanitizer);
    __tsan_release(tag);
  }
  for (const Thread* thread : threads) {
    become(thread->sanitizer);
    __tsan_acquire(tag);
  }
  become(machine.sanitizer);
  delete tag;
  become(self);
}

void begin_grid() {
  machine.sanitizer = __tsan_get_current_fiber();
  __tsan_ignore_thread_begin();
  grid_begins = new char;
  grid_ends = new char;
  __tsan_release(grid_begins);
  used_fibers = 0;
}

void* fiber(size_t number) {
  while (fibers.size() <= number) fibers.push_back(__tsan_create_fiber(0));
  return fibers[number];
}

// Threads come after what was before the grid. Fibers are used in turn; one that is used again knows what it learnt at
// the barriers of an earlier block. That block is never the one before, so neighbours in the shuffled order know
// nothing of each other, and a race between blocks shows.
void begin_block(std::vector<Thread*> threads) {
  shuffle(threads);
  for (Thread* thread : threads) {
    const size_t number = used_fibers++ % std::max(kFibers, 2 * threads.size());
    thread->stack = stack(number);
    thread->sanitizer = fiber(number);
    const dim3& block = thread->position.block;
    char name[64];
    std::snprintf(name, sizeof name, "block %u,%u,%u thread %u", block.x, block.y, block.z, thread->number);
    __tsan_set_fiber_name(thread->sanitizer, name);
    become(thread->sanitizer);
    __tsan_acquire(grid_begins);
    become(machine.sanitizer);
  }
}

void end_block(const std::vector<Thread*>& threads) {
  for (const Thread* thread : threads) {
    become(thread->sanitizer);
    __tsan_release(grid_ends);
  }
  become(machine.sanitizer);
}

void end_grid() {
  __tsan_acquire(grid_ends);
  delete grid_begins;
  delete grid_ends;
  __tsan_ignore_thread_end();
}

#else

#if !defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
void enter(Thread& thread) { switch_context(machine.context, thread.context); }
void leave(Thread& thread) { switch_context(thread.context, machine.context); }
#endif

constexpr size_t kStacks = kMaxThreads;

template <class Work>
auto as_scheduler(const Work& work) {
  return work();
}
void synchronize(std::span<Thread* const>) {}
void begin_grid() {}
void begin_block(const std::vector<Thread*>& threads) {
  for (Thread* thread : threads) thread->stack = stack(thread->number);
}
void end_block(const std::vector<Thread*>&) {}
void end_grid() {}

#endif

void yield() { leave(*machine.running); }

// --- Barriers ---------------------------------------------------------------------------------------------------------

bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

uint64_t tally(const Block& block) {
  uint64_t votes = 0;
  for (const Thread& thread : block.threads) votes += thread.vote;
  switch (block.vote) {
    case Vote::kAnd: return votes == block.threads.size();
    case Vote::kOr: return votes > 0;
    default: return votes;
  }
}

void complete_barrier(Block& block) {
  const uint64_t result = tally(block);
  for (Thread& thread : block.threads) {
    thread.result = result;
    thread.state = State::kRunnable;
  }
  synchronize(block.all);
  block.waiting = 0;
}

// --- Warp collectives -------------------------------------------------------------------------------------------------

// The lane whose value a lane gets; itself where CUDA says "unchanged".
unsigned source_lane(const Pending& pending, unsigned lane) {
  const auto argument = static_cast<unsigned>(pending.argument);
  switch (pending.kind) {
    case Collective::kIndex: return argument % kWarp;
    case Collective::kUp: return argument > lane ? lane : lane - argument;
    case Collective::kDown: return argument >= kWarp - lane ? lane : lane + argument;
    case Collective::kXor: return lane ^ argument;
    default: return lane;
  }
}

// The lanes that the mask of a waiting thread names. Lanes that the block never had are not among them: in a last warp
// that is not full, a full mask is fine.
std::span<Thread* const> named_lanes(Block& block, const Thread& thread, std::array<Thread*, kWarp>& room) {
  const unsigned first = thread.number / kWarp * kWarp;
  size_t count = 0;
  for (unsigned lane = 0; lane < kWarp && first + lane < block.threads.size(); ++lane)
    if (thread.pending.mask >> lane & 1) room[count++] = &block.threads[first + lane];
  return {room.data(), count};
}

bool all_arrived(std::span<Thread* const> lanes, const Pending& pending) {
  for (const Thread* lane : lanes) {
    if (lane->state == State::kDone)
      fail("line %u: lane %u of the mask has left the kernel", pending.site.line(), lane->number % kWarp);
    if (lane->state != State::kInCollective) return false;
    if (lane->pending.mask != pending.mask || !same_site(lane->pending.site, pending.site))
      fail("lines %u and %u: lanes of one mask wait in different collectives", pending.site.line(),
           lane->pending.site.line());
  }
  return true;
}

uint64_t ballot(std::span<Thread* const> lanes) {
  uint64_t bits = 0;
  for (const Thread* lane : lanes) bits |= static_cast<uint64_t>(lane->pending.value != 0) << lane->number % kWarp;
  return bits;
}

uint64_t shuffled_value(const Block& block, const Thread& thread) {
  const unsigned lane = thread.number % kWarp, source = source_lane(thread.pending, lane);
  const size_t from = thread.number - lane + source;
  if (source >= kWarp || from >= block.threads.size() || !(thread.pending.mask >> source & 1))
    fail("line %u: lane %u reads lane %u, which is not in the mask", thread.pending.site.line(), lane, source);
  return block.threads[from].pending.value;
}

void complete_collective(const Block& block, std::span<Thread* const> lanes) {
  const Collective kind = lanes.front()->pending.kind;
  const uint64_t votes = kind == Collective::kBallot ? ballot(lanes) : 0;
  for (Thread* lane : lanes) {
    if (kind == Collective::kBallot) lane->result = votes;
    if (kind != Collective::kBallot && kind != Collective::kSync) lane->result = shuffled_value(block, *lane);
    lane->state = State::kRunnable;
  }
  if (kind == Collective::kSync) synchronize(lanes);
}

// --- Blocks -----------------------------------------------------------------------------------------------------------

[[noreturn]] void thread_main() {
  begin_thread();
  (*machine.body)();
  Thread& self = *machine.running;
  self.state = State::kDone;
  --machine.block->running;
  leave(self);
  std::abort();  // nobody enters a thread that is done
}

char* stack(size_t number) {
  if (machine.stacks == nullptr) {
    void* const memory = mmap(nullptr, kStacks * kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for %zu stacks", kStacks);
    machine.stacks = static_cast<char*>(memory);
  }
  return machine.stacks + number * kStackBytes;
}

void make_threads(Block& block, dim3 index, dim3 grid, dim3 size) {
  block.running = size.x * size.y * size.z;
  for (unsigned i = 0; i < block.running; ++i)
    block.threads.push_back({i, {{i % size.x, i / size.x % size.y, i / size.x / size.y}, index, size, grid}});
  for (Thread& thread : block.threads) block.all.push_back(&thread);
  begin_block(block.all);
  for (Thread& thread : block.threads) make_context(thread.context, thread.stack, thread_main);
}

const char* describe(State state) {
  return state == State::kDone        ? "has left the kernel"
         : state == State::kAtBarrier ? "waits at a barrier"
                                      : "waits elsewhere";
}

[[noreturn]] void report_deadlock(Block& block) {
  std::array<Thread*, kWarp> room;
  for (const Thread& thread : block.threads) {
    if (thread.state != State::kInCollective) continue;
    for (const Thread* lane : named_lanes(block, thread, room))
      if (lane->state != State::kInCollective || lane->pending.mask != thread.pending.mask)
        fail("line %u: thread %u waits for lane %u, which %s", thread.pending.site.line(), thread.number,
             lane->number % kWarp, describe(lane->state));
  }
  for (const Thread& thread : block.threads)
    if (thread.state == State::kDone)
      fail("line %u: threads wait at a barrier, but thread %u has left the kernel", block.barrier.line(),
           thread.number);
  fail("line %u: not all threads reach the barrier", block.barrier.line());
}

void* new_shared(Block& block, const void* site, size_t bytes) {
  block.shared_bytes += bytes;
  if (block.shared_bytes > kMaxSharedBytes) fail("%zu bytes of shared memory", block.shared_bytes);
  block.shared.push_back({site, std::make_unique_for_overwrite<char[]>(bytes + kGuardBytes), bytes});
  char* const memory = block.shared.back().memory.get();
  std::memset(memory, kPoison, bytes + kGuardBytes);
  return memory;
}

void check_guards(const Block& block) {
  for (const SharedArray& array : block.shared)
    for (size_t i = 0; i < kGuardBytes; ++i)
      if (static_cast<unsigned char>(array.memory[array.bytes + i]) != kPoison)
        fail("a shared array of %zu bytes was written %zu bytes beyond its end", array.bytes, i);
}

constexpr char kDynamicSite = 0;  // its address stands for the dynamic array

// Runs the warp that begins at thread `first` for some rounds, each lane as far as it gets alone: usually until the
// warp waits for others, so that a warp is as far ahead of the others as it can be, where a missing barrier shows.
// False if it cannot run.
bool run_warp(const Block& block, size_t first) {
  constexpr uint64_t kRounds = 16;  // on average
  const size_t end = std::min(first + kWarp, block.all.size());
  std::vector<Thread*> runnable;
  bool ran = false;
  do {
    runnable.clear();
    for (size_t i = first; i < end; ++i)
      if (block.all[i]->state == State::kRunnable) runnable.push_back(block.all[i]);
    shuffle(runnable);
    for (Thread* thread : runnable) {  // who becomes runnable meanwhile waits for the next round
      machine.running = thread;
      running_position = &thread->position;
      enter(*thread);
    }
    ran |= !runnable.empty();
  } while (!runnable.empty() && next_random() % kRounds != 0);
  return ran;
}

void run_block(dim3 index, dim3 grid, dim3 size, size_t shared_bytes) {
  Block block;
  machine.block = &block;
  new_shared(block, &kDynamicSite, shared_bytes);
  make_threads(block, index, grid, size);
  std::vector<size_t> warps;
  for (size_t first = 0; first < block.all.size(); first += kWarp) warps.push_back(first);
  while (block.running > 0) {
    shuffle(warps);
    bool progress = false;
    for (const size_t first : warps) progress |= run_warp(block, first);
    if (!progress) report_deadlock(block);
  }
  end_block(block.all);
  check_guards(block);
  machine.running = nullptr;
  machine.block = nullptr;
}

void check_launch(dim3 grid, dim3 block) {
  const auto threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads) fail("a block of %u x %u x %u threads", block.x, block.y, block.z);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kMaxGridX || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ)
    fail("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
}

}  // namespace

void set_seed(uint64_t seed) { machine.random = seed * 0x9e3779b97f4a7c15ull + 0x1234567; }

int64_t take_launch_count() { return std::exchange(machine.launches, 0); }

std::string take_report() { return {}; }

constexpr std::align_val_t kAllocationAlignment{256};  // of cudaMalloc

char* allocate(size_t before, size_t bytes, size_t after) {
  return static_cast<char*>(::operator new(before + bytes + after, kAllocationAlignment));
}

void release(char* storage) { ::operator delete(storage, kAllocationAlignment); }

void run_grid(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  machine.kernel = name;
  machine.body = &body;
  ++machine.launches;
  check_launch(grid, block);
  begin_grid();
  std::vector<uint64_t> order(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  for (uint64_t i = 0; i < order.size(); ++i) order[i] = i;
  shuffle(order);
  for (const uint64_t i : order) {
    const uint64_t row = i / grid.x;
    run_block(
        {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(row % grid.y), static_cast<unsigned>(row / grid.y)},
        grid, block, shared_bytes);
  }
  end_grid();
}

void* static_shared(const void* site, size_t bytes) {
  Block& block = *machine.block;
  for (const SharedArray& array : block.shared)
    if (array.site == site) return array.memory.get();
  return as_scheduler([&] { return new_shared(block, site, bytes); });
}

void* dynamic_shared() { return machine.block->shared.front().memory.get(); }

int block_barrier(Vote vote, bool predicate, Site site) {
  Block& block = *machine.block;
  Thread& self = *machine.running;
  if (block.waiting > 0 && !same_site(block.barrier, site))
    fail("lines %u and %u: threads of one block wait at different barriers", block.barrier.line(), site.line());
  block.vote = vote;
  block.barrier = site;
  self.vote = predicate;
  self.state = State::kAtBarrier;
  if (++block.waiting == block.threads.size()) complete_barrier(block);
  yield();
  return static_cast<int>(self.result);
}

uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int argument, Site site) {
  Block& block = *machine.block;
  Thread& self = *machine.running;
  if (!(mask >> self.number % kWarp & 1))
    fail("line %u: lane %u is not in its own mask", site.line(), self.number % kWarp);
  self.pending = {kind, mask, value, argument, site};
  self.state = State::kInCollective;
  std::array<Thread*, kWarp> room;
  const auto lanes = named_lanes(block, self, room);
  if (all_arrived(lanes, self.pending)) complete_collective(block, lanes);
  yield();
  return self.result;
}

void maybe_yield() {
  constexpr uint64_t kOneIn = 4;
  if (machine.running != nullptr && next_random() % kOneIn == 0) yield();
}

}  // namespace cuda_on_cpu
