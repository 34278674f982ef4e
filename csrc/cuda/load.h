// Reading tensors of any supported element type as float32. float16 and bfloat16 are converted by integer arithmetic:
// exact, and the same on every architecture and compiler.
#pragma once

#include "box_math.h"
#include "cuda/runtime.h"
#include "input_type.h"

namespace refinedet::cuda {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

#if !defined(__CUDACC_RTC__)

// Calls run(T{}) for the C++ type of the elements.
template <class Run>
void dispatch(InputType type, const Run& run) {
  switch (type) {
    case InputType::kFloat32: return run(float{});
    case InputType::kFloat16: return run(Half{});
    case InputType::kBFloat16: return run(BFloat16{});
  }
}

#endif

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

// Can elements of type `Wide` be read at this address? Tensors begin at such an address, views into them may not. Every
// thread of a kernel gets the same answer.
template <class Wide>
__device__ bool aligned_for(const void* address) {
  return reinterpret_cast<uint64_t>(address) % alignof(Wide) == 0;
}

// Elements 2 * index and 2 * index + 1, in one access where the address allows it.
template <class T>
__device__ float2 load_pair(const T* elements, int64_t index) {
  const T* const first = elements + 2 * index;
  if (!aligned_for<Pair<T>>(elements)) return make_float2(load(first), load(first + 1));
  const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(first);
  return make_float2(to_float(pair.first), to_float(pair.second));
}

// Elements 4 * index to 4 * index + 3, in one access where the address allows it.
template <class T>
__device__ float4 load_quad(const T* elements, int64_t index) {
  const T* const first = elements + 4 * index;
  if (!aligned_for<Quad<T>>(elements))
    return make_float4(load(first), load(first + 1), load(first + 2), load(first + 3));
  const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(first);
  return make_float4(to_float(quad.x), to_float(quad.y), to_float(quad.z), to_float(quad.w));
}

// Row `index` of a tensor [*,4] of anchors or offsets.
template <class T>
__device__ Center load_center(const T* rows, int64_t index) {
  const float4 row = load_quad(rows, index);
  return {row.x, row.y, row.z, row.w};
}

// Row `index` of a tensor [*,4] of corners.
template <class T>
__device__ Corners load_corners(const T* rows, int64_t index) {
  const float4 row = load_quad(rows, index);
  return {row.x, row.y, row.z, row.w};
}

// Writes row `index` of a tensor [*,4] of ours, which is aligned to 16 bytes.
__device__ inline void store_row(float* rows, int64_t index, float x, float y, float z, float w) {
  reinterpret_cast<float4*>(rows)[index] = make_float4(x, y, z, w);
}

__device__ inline void store_corners(float* rows, int64_t index, Corners box) {
  store_row(rows, index, box.x1, box.y1, box.x2, box.y2);
}

}  // namespace refinedet::cuda
