// Arithmetic of boxes and scores shared by CPU kernels, CUDA kernels and tests: one source, so that all of them agree
// bit for bit. Only IEEE operations (+ - * / and comparisons), no library function; compile without contraction of
// multiply-add (-ffp-contract=off, nvcc -fmad=false). The plain-PyTorch twin is refinedet/ops/reference/portable.py.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cstdint>
#include <cstring>
#endif

#ifdef __CUDACC__
#define REFINEDET_HD __host__ __device__ inline
#else
#define REFINEDET_HD inline
#endif

#if defined(__CUDACC_RTC__)  // has no standard headers
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned;
using int64_t = long long;
using uint64_t = unsigned long long;
#endif

namespace refinedet {

struct Corners {
  float x1, y1, x2, y2;
};

struct Center {
  float cx, cy, w, h;
};

// Scales of the encoded offsets, in the order dx, dy, dw, dh (spec section 6).
struct Variances {
  float x, y, w, h;
};

REFINEDET_HD uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
#endif
}

REFINEDET_HD float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
#endif
}

REFINEDET_HD bool finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

// 2^n for n in [-126, 127], given as unsigned so that the garbage of a NaN stays defined.
REFINEDET_HD float power_of_two(uint32_t n) { return bits_float((n + 127u) << 23); }

// e^x is 2^n e^r, n an integer and |r| <= ln(2) / 2. Gives e^r and sets n, as unsigned. For x in [-104, 89].
REFINEDET_HD float exp_of_rest(float x, uint32_t& n) {
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  constexpr float rounder = 12582912.0f;
  const float shifted = x * 1.44269504f + rounder;
  n = float_bits(shifted) - float_bits(rounder);
  const float whole = shifted - rounder;
  // ln 2 in two parts; the first has 9 bits, so its product with n is exact.
  const float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  // e^r = 1 + r + r^2 P(r): minimax fit of P, relative error 3e-9.
  float p = 1.3814467e-3f;
  p = p * r + 8.3687808e-3f;
  p = p * r + 4.1668393e-2f;
  p = p * r + 1.6666520e-1f;
  p = p * r + 4.9999994e-1f;
  return (p * (r * r) + r) + 1.0f;
}

// e^x, the same on every device and compiler. Error below 1 ulp (0.99 measured over every float), gradual underflow,
// 0 below -104, +inf above 88.73, NaN for NaN. Branch-free, so that loops over it vectorise.
REFINEDET_HD float portable_exp(float x) {
  // Beyond these bounds the result is 0 or inf anyway; within them n stays in [-150, 128].
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  uint32_t n;
  const float y = exp_of_rest(x, n);
  // 2^n in two factors, because n itself may leave the range of normal exponents.
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(n) >> 1);
  return (y * power_of_two(half)) * power_of_two(n - half);
}

// The same for x in [-86, 86], with half the instructions: no bound is met and the result is a normal number.
constexpr float kModerate = 86.0f;
REFINEDET_HD float portable_exp_of_moderate(float x) {
  uint32_t n;
  const float y = exp_of_rest(x, n);
  return bits_float(float_bits(y) + (n << 23));
}

// Probability of class 1 of a two-class softmax (ARM: 0 = background, 1 = object), with one exponential.
REFINEDET_HD float objectness(float background, float object) {
  return 1.0f / (1.0f + portable_exp(background - object));
}

// Sorting these keys ascending gives score descending, then index ascending. The score must not be NaN.
REFINEDET_HD uint64_t descending_key(float score, uint32_t index) {
  const uint32_t bits = float_bits(score + 0.0f);  // -0 becomes +0, its equal
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | index;
}

REFINEDET_HD float key_score(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key >> 32);
  return bits_float(ascending & 0x80000000u ? ascending & 0x7fffffffu : ~ascending);
}

REFINEDET_HD uint32_t key_index(uint64_t key) { return static_cast<uint32_t>(key); }

// Moves an anchor by predicted offsets; neither clipped nor clamped (spec section 6).
REFINEDET_HD Center decode(Center anchor, Center offset, Variances v) {
  return {offset.cx * v.x * anchor.w + anchor.cx, offset.cy * v.y * anchor.h + anchor.cy,
          portable_exp(offset.w * v.w) * anchor.w, portable_exp(offset.h * v.h) * anchor.h};
}

REFINEDET_HD Corners to_corners(Center b) {
  const float half_w = b.w * 0.5f, half_h = b.h * 0.5f;
  return {b.cx - half_w, b.cy - half_h, b.cx + half_w, b.cy + half_h};
}

REFINEDET_HD bool finite(Corners b) { return finite(b.x1) && finite(b.y1) && finite(b.x2) && finite(b.y2); }

REFINEDET_HD float positive(float x) { return x > 0.0f ? x : 0.0f; }

// Area of a box; 0 for an inverted one.
REFINEDET_HD float area(Corners b) { return positive(b.x2 - b.x1) * positive(b.y2 - b.y1); }

REFINEDET_HD float intersection(Corners a, Corners b) {
  const float x1 = a.x1 > b.x1 ? a.x1 : b.x1, y1 = a.y1 > b.y1 ? a.y1 : b.y1;
  const float x2 = a.x2 < b.x2 ? a.x2 : b.x2, y2 = a.y2 < b.y2 ? a.y2 : b.y2;
  return positive(x2 - x1) * positive(y2 - y1);
}

// The same of boxes that reach `pixel` further: with 1, to the end of their last pixel (spec section 10.2); with 0 the
// same numbers, but another addition each.
REFINEDET_HD float area(Corners b, float pixel) {
  return positive(b.x2 - b.x1 + pixel) * positive(b.y2 - b.y1 + pixel);
}

REFINEDET_HD float intersection(Corners a, Corners b, float pixel) {
  const float x1 = a.x1 > b.x1 ? a.x1 : b.x1, y1 = a.y1 > b.y1 ? a.y1 : b.y1;
  const float x2 = a.x2 < b.x2 ? a.x2 : b.x2, y2 = a.y2 < b.y2 ? a.y2 : b.y2;
  return positive(x2 - x1 + pixel) * positive(y2 - y1 + pixel);
}

// The one suppression predicate: IoU > threshold, without a division.
REFINEDET_HD bool overlaps(float inter, float area_a, float area_b, float threshold) {
  return inter > threshold * (area_a + area_b - inter);
}

// IoU; 0 where nothing overlaps, and where areas overflow (NaN).
REFINEDET_HD float any_iou(float inter, float area_a, float area_b) {
  const float value = inter / (area_a + area_b - inter);
  return value > 0.0f ? value : 0.0f;
}

// IoU for matching: at or below 1e-6 a pair does not overlap (spec section 7.2), nor where areas overflow (NaN).
REFINEDET_HD float iou(float inter, float area_a, float area_b) {
  const float value = inter / (area_a + area_b - inter);
  return value > 1e-6f ? value : 0.0f;
}

}  // namespace refinedet
