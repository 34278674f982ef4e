// Executes CUDA kernels on the CPU, for tests: one fiber per CUDA thread, all in one OS thread, so that a seed repeats
// a schedule exactly. Barriers, warp collectives, atomics and shared memory have their real meaning, and what CUDA
// leaves undefined stops the program with a message: a barrier that not all threads reach, a collective whose lanes
// disagree on mask or place, a lane that has left, a value from a lane outside the mask.
//
// Under ThreadSanitizer every fiber is a thread of its own, ordered only by what orders CUDA threads: __syncthreads,
// __syncwarp, and the end of a kernel. Shuffles, ballots and atomics order nothing. So a missing barrier is a reported
// race whatever the schedule, between blocks too. Under AddressSanitizer shared arrays are heap blocks, not a byte
// longer than they say.
//
// Not modelled: the weak memory order of a GPU, and time. Blocks run one after another, in shuffled order.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static_assert(false, "use REFINEDET_SHARED");

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) ushort4 {
  unsigned short x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace cuda_on_cpu {

using Site = std::source_location;

// The byte with which shared memory, outputs and workspace are filled first: as a float
// -2.7e7, as an index far outside.
constexpr unsigned char kPoison = 0xcb;

// Poison around a block of memory, which shows accesses outside. AddressSanitizer does that better.
#if defined(CUDA_ON_CPU_ADDRESS_SANITIZER)
constexpr size_t kGuardBytes = 0;
#else
constexpr size_t kGuardBytes = 1024;
#endif

// Seed of the schedules to come.
void set_seed(uint64_t seed);

// Kernels run since the last call.
int64_t take_launch_count();

// What the runtime has to say about them: JSON, or nothing.
std::string take_report();

// Memory that kernels may touch, `bytes` after the first `before`; the rest shows accesses outside. Aligned to 256
// bytes.
char* allocate(size_t before, size_t bytes, size_t after);
void release(char* storage);

// Runs `body` once per thread of the grid.
void run_grid(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

struct Position {
  dim3 thread, block, block_size, grid_size;
};

extern const Position* running_position;

// Shared memory of the running block, poisoned when first asked for. `site` tells static arrays apart.
void* static_shared(const void* site, size_t bytes);
void* dynamic_shared();

enum class Vote { kCount, kAnd, kOr };

int block_barrier(Vote vote, bool predicate, Site site);

enum class Collective { kSync, kBallot, kIndex, kUp, kDown, kXor };

// One warp collective on 64-bit values; `argument` is the lane or distance of a shuffle.
uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int argument, Site site);

// Lets another thread go first, now and then: atomics interleave with everything.
void maybe_yield();

// The types that CUDA's shuffles and atomics take.
template <class T, class... Choices>
concept OneOf = (std::same_as<T, Choices> || ...);
template <class T>
concept Shuffled = OneOf<T, int, unsigned, long, unsigned long, long long, unsigned long long, float, double>;
template <class T>
concept Word = OneOf<T, int, unsigned, unsigned long long>;
template <class T>
concept WordOrFloat = Word<T> || std::same_as<T, float>;
template <class T>
concept WordOrLong = Word<T> || std::same_as<T, long long>;

template <Shuffled T>
T shuffle(Collective kind, unsigned mask, T value, int argument, Site site) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(kind, mask, bits, argument, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Read-modify-write as a loop of compare-and-swap; returns the old value.
template <class T, class Update>
T atomic_update(T* address, const Update& update) {
  maybe_yield();
  T old;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  for (T wanted = update(old);
       !__atomic_compare_exchange(address, &old, &wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);)
    wanted = update(old);
  return old;
}

}  // namespace cuda_on_cpu

#define threadIdx (::cuda_on_cpu::running_position->thread)
#define blockIdx (::cuda_on_cpu::running_position->block)
#define blockDim (::cuda_on_cpu::running_position->block_size)
#define gridDim (::cuda_on_cpu::running_position->grid_size)

#define REFINEDET_SHARED(type, name, count) \
  static const char name##_site = 0;        \
  type* const name = static_cast<type*>(::cuda_on_cpu::static_shared(&name##_site, sizeof(type) * (count)))
#define REFINEDET_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::cuda_on_cpu::dynamic_shared())

using cuda_on_cpu::Collective;
using cuda_on_cpu::Site;

inline void __syncthreads(Site site = Site::current()) {
  cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::kCount, false, site);
}
inline int __syncthreads_count(int p, Site site = Site::current()) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::kCount, p != 0, site);
}
inline int __syncthreads_and(int p, Site site = Site::current()) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::kAnd, p != 0, site);
}
inline int __syncthreads_or(int p, Site site = Site::current()) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::kOr, p != 0, site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, Site site = Site::current()) {
  cuda_on_cpu::warp_collective(Collective::kSync, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int p, Site site = Site::current()) {
  return static_cast<unsigned>(cuda_on_cpu::warp_collective(Collective::kBallot, mask, p != 0, 0, site));
}
inline int __any_sync(unsigned mask, int p, Site site = Site::current()) { return __ballot_sync(mask, p, site) != 0; }
inline int __all_sync(unsigned mask, int p, Site site = Site::current()) { return __ballot_sync(mask, !p, site) == 0; }
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, Site site = Site::current()) {
  return cuda_on_cpu::shuffle(Collective::kIndex, mask, value, lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, Site site = Site::current()) {
  return cuda_on_cpu::shuffle(Collective::kUp, mask, value, static_cast<int>(distance), site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, Site site = Site::current()) {
  return cuda_on_cpu::shuffle(Collective::kDown, mask, value, static_cast<int>(distance), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, Site site = Site::current()) {
  return cuda_on_cpu::shuffle(Collective::kXor, mask, value, lanes, site);
}

template <cuda_on_cpu::WordOrFloat T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic_update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <cuda_on_cpu::WordOrLong T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic_update(address, [=](T old) { return std::max(old, value); });
}
template <cuda_on_cpu::WordOrLong T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic_update(address, [=](T old) { return std::min(old, value); });
}
template <cuda_on_cpu::Word T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic_update(address, [=](T old) { return static_cast<T>(old | value); });
}
template <cuda_on_cpu::WordOrFloat T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic_update(address, [=](T) { return value; });
}
template <cuda_on_cpu::Word T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic_update(address, [=](T old) { return old == expected ? value : old; });
}

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned x) {
  float value;
  std::memcpy(&value, &x, sizeof(value));
  return value;
}

using std::max;
using std::min;

// --- What csrc/cuda/runtime.h asks of the header that REFINEDET_CUDA_RUNTIME names -----------------------------------

namespace refinedet::cuda {

using Stream = void*;

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream,
            Arguments... arguments) {
  cuda_on_cpu::run_grid(name, grid, block, shared_bytes, [=] { kernel(arguments...); });
}

inline void memset_async(void* destination, int value, size_t bytes, Stream) { std::memset(destination, value, bytes); }

}  // namespace refinedet::cuda
