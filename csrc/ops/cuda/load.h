// Reading tensors of any supported element type as float32. float16 and bfloat16 are bits to us, converted by integer
// arithmetic: exact, the same on every architecture and compiler.
#pragma once

#include "box_math.h"
#include "ops/cuda/runtime.h"

namespace refinedet::cuda {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

__device__ inline float to_float(float x) { return x; }

__device__ inline float to_float(BFloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

__device__ inline float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return bits_float(sign | (magnitude + 0x70000000u));  // inf and NaN: largest exponent
  // Multiplying by 2^112 moves the exponent's bias; it also normalises subnormal numbers, exactly.
  return bits_float(sign | float_bits(bits_float(magnitude) * 5.192296858534828e33f));
}

template <class T>
__device__ float load(const T* address) {
  return to_float(*address);
}

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T x, y, z, w;
};

// Two elements in one access; `rows` is aligned to two elements.
template <class T>
__device__ float2 load_pair(const T* rows, int64_t index) {
  const Pair<T> pair = reinterpret_cast<const Pair<T>*>(rows)[index];
  return make_float2(to_float(pair.first), to_float(pair.second));
}

// A box or its offsets in one access; `rows` is aligned to four elements.
template <class T>
__device__ Center load_center(const T* rows, int64_t index) {
  const Quad<T> quad = reinterpret_cast<const Quad<T>*>(rows)[index];
  return {to_float(quad.x), to_float(quad.y), to_float(quad.z), to_float(quad.w)};
}

}  // namespace refinedet::cuda
