#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "warp.h"

namespace ptx_on_cpu {
namespace {

constexpr int kWord = 4;
constexpr uint64_t kSector = 32;                 // of global memory: what a request fetches at least
constexpr size_t kArenaBytes = size_t{1} << 34;  // of address space; memory is taken when it is touched
constexpr uint64_t kBetweenBlocks = 256;         // so that a step too far meets nobody's block

void* reserve(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) stop("no address space for " + std::to_string(bytes) + " bytes");
  return memory;
}

}  // namespace

// --- Races ------------------------------------------------------------------------------------------------------------

void Shadow::resize(size_t bytes) {
  if (bytes <= capacity_) return;
  if (words_ != nullptr) munmap(words_, capacity_ / kWord * sizeof(Cell));
  if (bytes_ != nullptr) munmap(bytes_, capacity_ * sizeof(Cell));
  capacity_ = (bytes + 4095) / 4096 * 4096;
  words_ = static_cast<Cell*>(reserve(capacity_ / kWord * sizeof(Cell)));
  bytes_ = static_cast<Cell*>(reserve(capacity_ * sizeof(Cell)));
}

void Shadow::access(const Instruction& i, const Moment& now, uint64_t offset, int bytes, const char* where) {
  if (bytes < kWord) {
    for (int k = 0; k < bytes; ++k) visit(bytes_[offset + static_cast<uint64_t>(k)], i, now, where);
    return;
  }
  for (uint64_t word = offset / kWord; word < (offset + static_cast<uint64_t>(bytes)) / kWord; ++word)
    visit(words_[word], i, now, where);
}

bool Shadow::first_read(const Moment& now, uint64_t offset) {
  uint32_t& cached = words_[offset / kSector * kSector / kWord].cached_tick;
  const bool first = cached < now.block_start;
  cached = now.tick;
  return first;
}

bool Shadow::first_touch(const Moment& now, uint64_t offset) {
  uint32_t& touched = words_[offset / kSector * kSector / kWord].touched_tick;
  const bool first = touched < now.launch_start;
  touched = now.tick;
  return first;
}

bool Shadow::written_by_block(const Moment& now, uint64_t offset, int bytes) const {
  if (bytes < kWord) return bytes_[offset].write_tick >= now.block_start;
  for (uint64_t word = offset / kWord; word < (offset + static_cast<uint64_t>(bytes)) / kWord; ++word)
    if (words_[word].write_tick < now.block_start) return false;
  return true;
}

bool Shadow::ordered_after_write(const Cell& cell, const Moment& now) const {
  if (cell.write_tick < now.launch_start) return true;
  if (cell.write_tick < now.block_start) return false;  // another block's
  if (cell.write_tick < now.tick || cell.writer == now.thread) return true;
  return cell.writer / kLanes == now.thread / kLanes &&
         now.warp->has_seen(now.thread % kLanes, cell.writer % kLanes, cell.write_clock);
}

bool Shadow::ordered_after_reads(const Cell& cell, const Moment& now) const {
  if (cell.read_tick < now.launch_start) return true;
  if (cell.several_blocks_read || cell.read_tick < now.block_start) return false;
  if (cell.read_tick < now.tick) return true;
  if (cell.several_warps_read || cell.reader_warp != now.thread / kLanes) return false;
  const int lane = now.thread % kLanes;
  bool ordered = true;
  each_lane(cell.reader_lanes & ~(1u << lane),
            [&](int reader) { ordered = ordered && now.warp->has_seen(lane, reader, cell.read_clock); });
  return ordered;
}

void Shadow::note_read(Cell& cell, const Instruction& i, const Moment& now) const {
  const auto warp = static_cast<uint16_t>(now.thread / kLanes);
  const int lane = now.thread % kLanes;
  const bool same_launch = cell.read_tick >= now.launch_start, same_block = cell.read_tick >= now.block_start;
  cell.several_blocks_read = same_launch && (cell.several_blocks_read || !same_block);
  if (same_block && cell.read_tick == now.tick) {
    cell.several_warps_read = cell.several_warps_read || cell.reader_warp != warp;
    cell.reader_lanes |= 1u << lane;
    cell.read_clock = std::max(cell.read_clock, now.warp->clock(lane));
  } else {
    cell.several_warps_read = false;
    cell.reader_lanes = 1u << lane;
    cell.read_clock = now.warp->clock(lane);
  }
  cell.reader_warp = warp;
  cell.read_tick = now.tick;
  cell.read_site = &i;
}

void Shadow::visit(Cell& cell, const Instruction& i, const Moment& now, const char* where) {
  const auto report = [&](const char* kind, const Instruction* other) {
    const Kernel& kernel = *now.warp->block().kernel;
    now.warp->fail(i, std::string("race in ") + where + " memory: " + kind + "\n  " + site(kernel, *other) + ", then",
                   1u << now.thread % kLanes);
  };
  const bool both_atomic = i.atomic && cell.atomic;
  if (!both_atomic && !ordered_after_write(cell, now))
    report(i.writes ? "write after write" : "read after write", cell.write_site);
  if (!i.writes) return note_read(cell, i, now);
  if (!ordered_after_reads(cell, now)) report("write after read", cell.read_site);
  cell.write_tick = now.tick;
  cell.writer = now.thread;
  cell.write_clock = now.warp->clock(now.thread % kLanes);
  cell.atomic = i.atomic;
  cell.write_site = &i;
}

// --- Device memory ----------------------------------------------------------------------------------------------------

Arena& Arena::instance() {
  static Arena arena;
  return arena;
}

Arena::Arena() : base_(reinterpret_cast<uint64_t>(reserve(kArenaBytes))), next_(base_) { shadow_.resize(kArenaBytes); }

char* Arena::allocate(size_t before, size_t bytes, size_t after) {
  const uint64_t storage = next_, start = storage + before;
  next_ = (start + bytes + after + 2 * kBetweenBlocks - 1) / kBetweenBlocks * kBetweenBlocks;
  if (next_ > base_ + kArenaBytes) stop("a request needs more than " + std::to_string(kArenaBytes) + " bytes");
  blocks_[storage] = {start, start + bytes};
  return reinterpret_cast<char*>(storage);
}

void Arena::release(char* storage) {
  blocks_.erase(reinterpret_cast<uint64_t>(storage));
  if (blocks_.empty()) next_ = base_;
}

char* Arena::check(const Instruction& i, uint64_t address, int bytes) const {
  const uint64_t end = address + static_cast<uint64_t>(bytes);
  if (address < i.known_low || end > i.known_high) {
    auto found = blocks_.upper_bound(address);
    if (found == blocks_.begin()) return nullptr;
    const Block& block = (--found)->second;
    if (address < block.start || end > block.end) return nullptr;
    i.known_low = block.start, i.known_high = block.end;
  }
  return reinterpret_cast<char*>(address);
}

// --- Instructions -----------------------------------------------------------------------------------------------------

namespace {

// Where the lanes of a request go.
struct Request {
  std::array<uint64_t, kLanes> addresses;
  int count = 0;
  bool fetches = false;  // from beyond L1
};

std::string in_space(const char* what, const Instruction& i) {
  return std::string(what) + (i.space == Space::kGlobal ? " in global memory" : " in shared memory");
}

unsigned char* place(Warp& warp, const Instruction& i, int lane, int bytes, Request& request) {
  Block& block = warp.block();
  uint64_t address = warp.lanes(i.a)[lane];
  if (i.space != Space::kGlobal) address = static_cast<uint32_t>(address);  // 32-bit windows
  address += static_cast<uint64_t>(i.offset);
  const auto size = static_cast<uint64_t>(bytes);
  if (address % size != 0)
    warp.fail(i, in_space("misaligned access", i) + " at " + std::to_string(address), 1u << lane);
  request.addresses[static_cast<size_t>(request.count++)] = address;
  if (i.space == Space::kParameter) {
    if (address + size > block.parameters->size()) warp.fail(i, "access out of bounds of the parameters", 1u << lane);
    return const_cast<unsigned char*>(block.parameters->data()) + address;
  }
  Moment now = warp.moment(lane);
  if (i.space == Space::kShared) {
    now.launch_start = now.block_start;  // every block has its own
    if (address + size > block.shared.size())
      warp.fail(i,
                "access out of bounds in shared memory: byte " + std::to_string(address) + " of " +
                    std::to_string(block.shared.size()),
                1u << lane);
    if (!i.writes && !block.shared_shadow->written_by_block(now, address, bytes))
      warp.fail(i, "uninitialised shared memory is read: byte " + std::to_string(address), 1u << lane);
    block.shared_shadow->access(i, now, address, bytes, "shared");
    return block.shared.data() + address;
  }
  Arena& arena = Arena::instance();
  char* const data = arena.check(i, address, bytes);
  if (data == nullptr) warp.fail(i, "access out of bounds in global memory", 1u << lane);
  arena.shadow().access(i, now, arena.offset(address), bytes, "global");
  if (arena.shadow().first_touch(now, arena.offset(address))) ++i.counters.first_sectors;
  if (!i.writes && arena.shadow().first_read(now, arena.offset(address))) request.fetches = true;
  return reinterpret_cast<unsigned char*>(data);
}

// Sectors of 32 bytes that a request touches.
int count_sectors(const Request& request, int bytes) {
  std::array<uint64_t, 4 * kLanes> sectors;
  size_t count = 0;
  for (int k = 0; k < request.count; ++k) {
    const uint64_t address = request.addresses[static_cast<size_t>(k)];
    for (uint64_t s = address / kSector; s <= (address + static_cast<uint64_t>(bytes) - 1) / kSector; ++s)
      if (count == 0 || sectors[count - 1] != s) sectors[count++] = s;
  }
  std::sort(sectors.begin(), sectors.begin() + count);
  return static_cast<int>(std::unique(sectors.begin(), sectors.begin() + count) - sectors.begin());
}

// Passes through the 32 banks of shared memory: lanes that want different words of a bank wait for each other. Accesses
// of 8 and 16 bytes go by half and quarter warps.
int count_passes(const Request& request, int bytes) {
  const int words = std::max(1, bytes / kWord), lanes_at_once = kLanes / words;
  int passes = 0;
  for (int first = 0; first < request.count; first += lanes_at_once) {
    std::array<std::array<uint64_t, kLanes>, kLanes> wanted;
    std::array<int, kLanes> counts{};
    int most = 1;
    for (int k = first; k < std::min(request.count, first + lanes_at_once); ++k) {
      for (int w = 0; w < words; ++w) {
        const uint64_t word = request.addresses[static_cast<size_t>(k)] / kWord + static_cast<uint64_t>(w);
        auto& bank = wanted[word % kLanes];
        int& count = counts[word % kLanes];
        if (std::find(bank.begin(), bank.begin() + count, word) != bank.begin() + count) continue;
        bank[static_cast<size_t>(count++)] = word;
        most = std::max(most, count);
      }
    }
    passes += most;
  }
  return passes;
}

void account(Warp& warp, const Instruction& i, const Request& request, int bytes) {
  Counters& counters = i.counters;
  if (i.space == Space::kParameter) return;
  if (i.space == Space::kShared) {
    const int passes = count_passes(request, bytes), least = std::max(1, bytes * request.count / (kWord * kLanes));
    ++counters.shared_requests;
    counters.bank_conflicts += static_cast<uint64_t>(std::max(0, passes - least));
    warp.set_memory_time(passes, MemoryTiming::kShared);
    return;
  }
  const int sectors = count_sectors(request, bytes);
  ++counters.global_requests;
  counters.global_sectors += static_cast<uint64_t>(sectors);
  counters.global_bytes += static_cast<uint64_t>(bytes * request.count);
  const int passes = (sectors + MemoryTiming::kSectorsAtOnce - 1) / MemoryTiming::kSectorsAtOnce;
  warp.set_memory_time(passes, i.atomic || request.fetches ? MemoryTiming::kL2 : MemoryTiming::kL1);
}

}  // namespace

// ld (section 9.7.9.8).
void load(Warp& warp, const Instruction& i, uint32_t lanes) {
  const int bytes = i.element_bytes * i.vector_size, unused_bits = 64 - 8 * i.element_bytes;
  Request request;
  each_lane(lanes, [&](int lane) {
    const unsigned char* const data = place(warp, i, lane, bytes, request);
    for (int k = 0; k < i.vector_size; ++k) {
      uint64_t value = 0;
      std::memcpy(&value, data + k * i.element_bytes, static_cast<size_t>(i.element_bytes));
      if (i.sign_extends) value = static_cast<uint64_t>(static_cast<int64_t>(value << unused_bits) >> unused_bits);
      warp.lanes(i.vector[static_cast<size_t>(k)])[lane] = value;
    }
  });
  account(warp, i, request, bytes);
}

// st (section 9.7.9.12).
void store(Warp& warp, const Instruction& i, uint32_t lanes) {
  const int bytes = i.element_bytes * i.vector_size;
  Request request;
  each_lane(lanes, [&](int lane) {
    unsigned char* const data = place(warp, i, lane, bytes, request);
    for (int k = 0; k < i.vector_size; ++k)
      std::memcpy(data + k * i.element_bytes, &warp.lanes(i.vector[static_cast<size_t>(k)])[lane],
                  static_cast<size_t>(i.element_bytes));
  });
  account(warp, i, request, bytes);
  warp.set_memory_time(1, 0);  // nothing waits for a store
}

namespace {

// Lanes that meet at an address go one after the other.
void account_atomics(Warp& warp, const Instruction& i, Request& request, int bytes) {
  account(warp, i, request, bytes);
  std::sort(request.addresses.begin(), request.addresses.begin() + request.count);
  int collisions = 0, run = 0, longest = 0;
  for (int k = 1; k < request.count; ++k) {
    const bool same = request.addresses[static_cast<size_t>(k)] == request.addresses[static_cast<size_t>(k - 1)];
    collisions += same;
    run = same ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  i.counters.atomics += static_cast<uint64_t>(request.count);
  i.counters.atomic_collisions += static_cast<uint64_t>(collisions);
  warp.set_memory_time(1 + longest, i.space == Space::kShared ? MemoryTiming::kShared : MemoryTiming::kL2);
}

// atom and red (sections 9.7.13.6, 9.7.13.7).
template <class T, auto combine>
void update(Warp& warp, const Instruction& i, uint32_t lanes) {
  Request request;
  each_lane(lanes, [&](int lane) {
    unsigned char* const data = place(warp, i, lane, sizeof(T), request);
    T old;
    std::memcpy(&old, data, sizeof old);
    const T updated = combine(old, static_cast<T>(warp.lanes(i.b)[lane]));
    std::memcpy(data, &updated, sizeof updated);
    if (i.result != kNoRegister) warp.lanes(i.result)[lane] = static_cast<uint64_t>(old);
  });
  account_atomics(warp, i, request, sizeof(T));
}

// atom.cas: `c` in place of what equals `b`.
template <class T>
void compare_and_swap(Warp& warp, const Instruction& i, uint32_t lanes) {
  Request request;
  each_lane(lanes, [&](int lane) {
    unsigned char* const data = place(warp, i, lane, sizeof(T), request);
    T old;
    std::memcpy(&old, data, sizeof old);
    const auto expected = static_cast<T>(warp.lanes(i.b)[lane]), wanted = static_cast<T>(warp.lanes(i.c)[lane]);
    if (old == expected) std::memcpy(data, &wanted, sizeof wanted);
    warp.lanes(i.result)[lane] = static_cast<uint64_t>(old);
  });
  account_atomics(warp, i, request, sizeof(T));
}

template <class T>
constexpr auto sum = [](T a, T b) { return static_cast<T>(a + b); };
template <class T>
constexpr auto either = [](T a, T b) { return static_cast<T>(a | b); };
template <class T>
constexpr auto larger = [](T a, T b) { return a > b ? a : b; };
template <class T>
constexpr auto smaller = [](T a, T b) { return a < b ? a : b; };
template <class T>
constexpr auto second = [](T, T b) { return b; };

}  // namespace

Execute find_atomic(const std::string& operation_and_type) {
  static const std::map<std::string, Execute> table = {
      {"add.u32", update<uint32_t, sum<uint32_t>>},     {"add.s32", update<uint32_t, sum<uint32_t>>},
      {"add.u64", update<uint64_t, sum<uint64_t>>},     {"or.b32", update<uint32_t, either<uint32_t>>},
      {"or.b64", update<uint64_t, either<uint64_t>>},   {"max.u32", update<uint32_t, larger<uint32_t>>},
      {"max.s32", update<int32_t, larger<int32_t>>},    {"max.u64", update<uint64_t, larger<uint64_t>>},
      {"max.s64", update<int64_t, larger<int64_t>>},    {"min.u32", update<uint32_t, smaller<uint32_t>>},
      {"min.s32", update<int32_t, smaller<int32_t>>},   {"min.u64", update<uint64_t, smaller<uint64_t>>},
      {"min.s64", update<int64_t, smaller<int64_t>>},   {"exch.b32", update<uint32_t, second<uint32_t>>},
      {"exch.b64", update<uint64_t, second<uint64_t>>}, {"cas.b32", compare_and_swap<uint32_t>},
      {"cas.b64", compare_and_swap<uint64_t>},
  };
  const auto found = table.find(operation_and_type);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace ptx_on_cpu
