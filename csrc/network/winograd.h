// A 3x3 convolution of stride 1 and padding 1, by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray,
// arXiv 1509.09308): 36 products where the direct way takes 144. For inference, on the CPU, where it has AVX2 and FMA.
//
// clang-format off
//   x       [B,H,W,C]      C a multiple of 16
//   weight  [36,P,C,16]    the transformed kernels G g G^T, by output channels in panels of 16, the last padded by zeros
//   bias    [16 P]         padded by zeros
//   other   [B,H,W,D]      is added before the ReLU; null = none
//   beside  [B,H,W,E]      comes first in y, as concatenation has it; null = none, E = 0
//   y       [B,H,W,E + D]  16 (P - 1) < D <= 16 P
// clang-format on
//
// All are float32. Results differ from those of a direct convolution by rounding, some 1e-5 of their rms.
#pragma once

#include <cstdint>

namespace refinedet::cpu {

struct Winograd {
  const float *x, *weight, *bias, *other, *beside;
  float* y;
  int64_t batch, height, width, in_channels, out_channels, beside_channels;
  bool relu;
};

inline constexpr int kWinogradChannels = 16;  // input channels come in multiples of it

void winograd(const Winograd& convolution);

}  // namespace refinedet::cpu
