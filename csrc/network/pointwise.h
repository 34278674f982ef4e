// A 1x1 convolution, for inference, on the CPU, where it has AVX2 and FMA.
//
// clang-format off
//   x       [N,C]       N pixels of any number of images
//   weight  [P,C,16]    by output channels in panels of 16, the last padded by zeros
//   bias    [16 P]      padded by zeros
//   other   [N,D]       is added before the ReLU; null = none
//   y       [N,D]       16 (P - 1) < D <= 16 P
// clang-format on
//
// All are float32.
#pragma once

#include <cstdint>

namespace refinedet::cpu {

struct Pointwise {
  const float *x, *weight, *bias, *other;
  float* y;
  int64_t pixels, in_channels, out_channels;
  bool relu;
};

void pointwise(const Pointwise& convolution);

}  // namespace refinedet::cpu
