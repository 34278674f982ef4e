// Box arithmetic shared by CPU kernels, CUDA kernels and tests: one source, so that all of them agree bit for bit.
// Compile without contraction of multiply-add (-ffp-contract=off, nvcc -fmad=false).
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define REFINEDET_HD __host__ __device__ inline
#else
#define REFINEDET_HD inline
#endif

namespace refinedet {

struct Corners {
  float x1, y1, x2, y2;
};

struct Center {
  float cx, cy, w, h;
};

REFINEDET_HD Corners to_corners(Center b) {
  const float half_w = b.w * 0.5f, half_h = b.h * 0.5f;
  return {b.cx - half_w, b.cy - half_h, b.cx + half_w, b.cy + half_h};
}

REFINEDET_HD float positive(float x) { return x > 0.0f ? x : 0.0f; }

// Area of a box; 0 for an inverted one.
REFINEDET_HD float area(Corners b) { return positive(b.x2 - b.x1) * positive(b.y2 - b.y1); }

REFINEDET_HD float intersection(Corners a, Corners b) {
  const float x1 = a.x1 > b.x1 ? a.x1 : b.x1, y1 = a.y1 > b.y1 ? a.y1 : b.y1;
  const float x2 = a.x2 < b.x2 ? a.x2 : b.x2, y2 = a.y2 < b.y2 ? a.y2 : b.y2;
  return positive(x2 - x1) * positive(y2 - y1);
}

// The one suppression predicate: IoU > threshold, without a division.
REFINEDET_HD bool overlaps(float inter, float area_a, float area_b, float threshold) {
  return inter > threshold * (area_a + area_b - inter);
}

// IoU for matching; 0 where nothing overlaps.
REFINEDET_HD float iou(float inter, float area_a, float area_b) {
  return inter > 0.0f ? inter / (area_a + area_b - inter) : 0.0f;
}

}  // namespace refinedet
