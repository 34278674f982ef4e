// nms: greedy non-maximum suppression of one set of boxes, or within each class.
//
//   boxes   [N,4]          corners x1, y1, x2, y2, any unit
//   scores  [N]
//   labels  [N] int64      any values; absent = one class. Boxes of different labels never meet
//   kept    [K] int64      indices of the survivors by score descending, ties by index ascending
//
// A box goes when intersection > iou_threshold * union with a kept box of its class (float32, box_math.h); equal scores
// rank by index. A NaN score or a coordinate that is not finite drops the box. An inverted box or one without area has
// area 0: it overlaps nothing and is kept. iou_threshold is not negative and not NaN; above 1 nothing goes. N < 2^32.
// float16, bfloat16 and float64 inputs are converted to float32. N = 0 gives K = 0.
#pragma once

#include <cstdint>

namespace refinedet::cpu {

// Writes K indices to kept, which has room for N, and returns K. `labels` may be null.
int64_t nms(const float* boxes, const float* scores, const int64_t* labels, int64_t num_boxes, float iou_threshold,
            int64_t* kept);

}  // namespace refinedet::cpu
