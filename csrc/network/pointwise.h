// A 1x1 convolution, or a deconvolution of 2x2 and stride 2, for inference, on the CPU, where it has AVX2 and FMA.
//
//   x       [R,W,C]             R rows of W pixels; of a 1x1 convolution all pixels may be one row
//   weight  [parts,P,C,16]      by output channels in panels of 16, the last padded by zeros
//   bias    [parts,16 P]        padded by zeros
//   other   [R,parts,W,D]       is added before the ReLU; null = none
//   y       [R,parts,W,D+room]  16 (P - 1) < D <= 16 P; the room is left as it is, for a convolution beside this one
//
// A convolution has one part. A deconvolution to E channels has two, the even and the odd rows of its map, with D = 2 E:
// two pixels to the right of each other. All are float32.
#pragma once

#include <cstdint>

namespace refinedet::cpu {

struct Pointwise {
  const float *x, *weight, *bias, *other;
  float* y;
  int64_t rows, width, in_channels, out_channels, parts, room;
  bool relu;
};

void pointwise(const Pointwise& convolution);

}  // namespace refinedet::cpu
