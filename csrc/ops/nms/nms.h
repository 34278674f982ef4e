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

#include "box_math.h"
#include "input_type.h"
#include "size_limits.h"

namespace refinedet {

struct NmsInputs {
  InputType type;         // of the boxes
  const void* boxes;      // [N,4]
  const float* scores;    // [N]
  const int64_t* labels;  // [N], may be null: one class
  const int64_t* order;   // [N] CUDA: boxes by score descending, equal ones by index ascending, NaN scores anywhere
  int64_t num_boxes;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("type", type);
    visit("boxes", boxes);
    visit("scores", scores);
    visit("labels", labels);
    visit("order", order);
    visit("num_boxes", num_boxes);
  }
};

struct NmsOptions {
  float iou_threshold;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("iou_threshold", iou_threshold);
  }
};

struct NmsOutputs {
  int64_t* kept;   // room for N; the first *count are written
  int64_t* count;  // [1]

  template <class Visit>
  void fields(const Visit& visit) {
    visit("kept", kept);
    visit("count", count);
  }
};

// Largest sizes that the kernels take.
struct NmsLimits {
  static constexpr int64_t kMaxBoxes = 0xffffffff;      // CPU: an index is half of a 64-bit sort key
  static constexpr int64_t kMaxBoxesCuda = 0x7fffffff;  // tiles are counted by blocks of a grid
};

#if !defined(__CUDACC_RTC__)
namespace cpu {

std::string nms_limits(const NmsInputs& inputs, const NmsOptions& options);
void nms(const NmsInputs& inputs, const NmsOptions& options, const NmsOutputs& outputs);

}  // namespace cpu
#endif
}  // namespace refinedet
