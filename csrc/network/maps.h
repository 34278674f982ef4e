// What stands between convolutions, on channels-last maps of float32, for inference on the CPU.
#pragma once

#include <cstdint>

namespace refinedet::cpu {

struct Pooling {
  const float* x;  // [B,H,W,C]
  float* y;        // [B,h,w,C]
  int64_t batch, height, width, channels, out_height, out_width, stride;
};

// The largest of each channel in windows of 2x2 or 3x3 pixels, the first at the corner; what of the last ones lies
// outside the map does not count. A NaN may get lost: to keep it makes GCC 12 leave the loop scalar, ten times slower.
void max_pool(const Pooling& pooling, int64_t side);

// y = weight * x / sqrt(sum of squares of a pixel's channels + epsilon), of [pixels,C].
void l2_norm(const float* x, const float* weight, int64_t pixels, int64_t channels, float epsilon, float* y);

}  // namespace refinedet::cpu
