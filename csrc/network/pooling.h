// Max pooling of channels-last maps of float32, for inference on the CPU.
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

}  // namespace refinedet::cpu
