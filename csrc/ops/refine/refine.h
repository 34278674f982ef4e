// refine: moves anchors by predicted offsets. Both stages of the detector use it (spec section 6).
//
//   anchors  [N,4] or [B,N,4]  cx, cy, w, h
//   offsets  [B,N,4]           encoded dx, dy, dw, dh
//   refined  [B,N,4] float32   cx, cy, w, h; neither clipped nor clamped
//
// float16, bfloat16 and float64 inputs are converted to float32; computation is float32. B = 0 and N = 0 give an empty
// result. NaN and inf pass through by the rules of IEEE arithmetic; a width too large for float32 becomes inf.
#pragma once

#include <cstdint>

#include "box_math.h"

namespace refinedet::cpu {

// One set of anchors for all images when `shared_anchors`, else one per image.
void refine(const float* anchors, bool shared_anchors, const float* offsets, int64_t batch, int64_t num_anchors,
            Variances variances, float* refined);

}  // namespace refinedet::cpu
