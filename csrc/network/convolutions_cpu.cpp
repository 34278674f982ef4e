#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "network/panels.h"
#include "network/pointwise.h"
#include "network/winograd.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define REFINEDET_CONVOLUTIONS
#include <immintrin.h>
#endif

namespace refinedet::cpu {

#ifdef REFINEDET_CONVOLUTIONS

namespace {

constexpr int64_t kSkew = 16;  // floats between the planes of the scratch: else their lines share one set of the cache

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx2,fma")
namespace avx512 {
typedef float Vec __attribute__((vector_size(64)));
constexpr int64_t kWidth = 16;
constexpr int kMostRows = 12;
inline Vec load(const float* at) { return _mm512_loadu_ps(at); }
inline void store(float* at, Vec value) { _mm512_storeu_ps(at, value); }
inline Vec load_some(const float* at, int64_t count) { return _mm512_maskz_loadu_ps((1u << count) - 1, at); }
inline void store_some(float* at, Vec value, int64_t count) { _mm512_mask_storeu_ps(at, (1u << count) - 1, value); }
inline Vec broadcast(float value) { return _mm512_set1_ps(value); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec subtract_multiple(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(b, c, a); }  // a - b c
#include "network/product_kernels.inc"
// clang-format keeps their order
#include "network/pointwise_kernels.inc"
#include "network/winograd_kernels.inc"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
typedef float Vec __attribute__((vector_size(32)));
constexpr int64_t kWidth = 8;
constexpr int kMostRows = 6;
inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load(const float* at) { return _mm256_loadu_ps(at); }
inline void store(float* at, Vec value) { _mm256_storeu_ps(at, value); }
inline Vec load_some(const float* at, int64_t count) { return _mm256_maskload_ps(at, first_lanes(count)); }
inline void store_some(float* at, Vec value, int64_t count) { _mm256_maskstore_ps(at, first_lanes(count), value); }
inline Vec broadcast(float value) { return _mm256_set1_ps(value); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec subtract_multiple(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(b, c, a); }  // a - b c
#include "network/product_kernels.inc"
// clang-format keeps their order
#include "network/pointwise_kernels.inc"
#include "network/winograd_kernels.inc"
}  // namespace avx2
#pragma GCC pop_options

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// Room for the tiles of a block, kept by the thread: to ask the system for it every time costs as much as a small
// layer.
float* scratch(int64_t floats) {
  constexpr int64_t kLine = 16;
  thread_local std::vector<float> room;
  if (static_cast<int64_t>(room.size()) < floats + kLine) room.resize(static_cast<size_t>(floats + kLine));
  const auto address = reinterpret_cast<uintptr_t>(room.data());
  return room.data() + (kLine - address / sizeof(float) % kLine) % kLine;
}

}  // namespace

bool has_convolutions() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

void winograd(const Winograd& c) {
  constexpr int64_t kTile = 4, kProducts = 36;
  const int64_t tiles = c.batch * ((c.height + kTile - 1) / kTile) * ((c.width + kTile - 1) / kTile);
  const int64_t padded = panels(c.out_channels) * kPanel;
  const int64_t of_tile = kProducts * (c.in_channels + padded);
  // A block reads all weights, in * out of them, and writes and reads in + out floats for each tile. This balances
  // both, from 64 to 512 channels; half as many tiles or twice as many take as long, within 2 % (512 KB of L2 cache).
  const int64_t most = std::max<int64_t>(24, 3 * (c.in_channels + padded) / 32);
  const int64_t threads = num_threads();
  const int64_t blocks = std::max<int64_t>(1, (tiles + most * threads - 1) / (most * threads)) * threads;
  const auto run = has_avx512() ? avx512::convolve_tiles : avx2::convolve_tiles;
  parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = tiles * block / blocks, last = tiles * (block + 1) / blocks;
      if (first < last) run(c, first, last, scratch((last - first) * of_tile + 2 * kProducts * kSkew));
    }
  });
}

void pointwise(const Pointwise& c) {
  // Pixels of a block stay in the cache while all weights go by.
  constexpr int64_t kFloats = 1 << 15;
  const int64_t most = std::max<int64_t>(24, kFloats / c.in_channels), threads = num_threads();
  const int64_t blocks = std::max<int64_t>(1, (c.pixels + most * threads - 1) / (most * threads)) * threads;
  const auto run = has_avx512() ? avx512::convolve_pixels : avx2::convolve_pixels;
  parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      run(c, c.pixels * block / blocks, c.pixels * (block + 1) / blocks);
    }
  });
}

#else

bool has_convolutions() { return false; }

void winograd(const Winograd&) {}

void pointwise(const Pointwise&) {}

#endif

}  // namespace refinedet::cpu
