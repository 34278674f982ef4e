// soft_nms: decays the scores of boxes that overlap better ones of their class (Bodla et al. 2017; spec section 10.2).
//
//   boxes    [B,N,4]         corners x1, y1, x2, y2, any unit
//   scores   [B,N]
//   labels   [B,N] int64     a row with a label of 0 or below is padding. Boxes of different labels never meet
//   decayed  [B,N] float32   score of a row after all decays; NaN: the row is dropped
//
// In each class of each image, until none is left: the box of the highest score is picked, equal scores by row
// ascending; its score is final. Of every other one that is left
//   linear     score *= 1 - IoU where IoU > iou_threshold
//   gaussian   score *= exp(-(IoU * IoU) / sigma), with portable_exp
// and of these, where IoU > 0, those whose score is not at least score_threshold then are dropped.
//
// official = false: boxes whose score is below score_threshold are dropped before the first pick, too.
// official = true: they stay until a picked one meets them, as in the released code; sides are x2 - x1 + 1.
//
// Padding, a NaN score and a box with a coordinate that is not finite are dropped before the first pick. An inverted
// box or one without area has area 0: it overlaps nothing; nor do boxes whose areas overflow. iou_threshold is not
// negative and not NaN, sigma is above 0, score_threshold is not NaN; N < 2^32. B = 0 and N = 0 give an empty result.
// float16, bfloat16 and float64 inputs are converted to float32; all arithmetic is float32 as in box_math.h.
#pragma once

#include "box_math.h"
#include "input_type.h"
#include "size_limits.h"

namespace refinedet {

struct SoftNmsInputs {
  InputType type;         // of the boxes
  const void* boxes;      // [B,N,4]
  const float* scores;    // [B,N]
  const int64_t* labels;  // [B,N]
  const int64_t* order;   // [B,N] CUDA: rows of each image by label, equal ones in any order
  int64_t batch, num_boxes;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("type", type);
    visit("boxes", boxes);
    visit("scores", scores);
    visit("labels", labels);
    visit("order", order);
    visit("batch", batch);
    visit("num_boxes", num_boxes);
  }
};

struct SoftNmsOptions {
  bool gaussian;
  float iou_threshold, sigma, score_threshold;
  bool official;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("gaussian", gaussian);
    visit("iou_threshold", iou_threshold);
    visit("sigma", sigma);
    visit("score_threshold", score_threshold);
    visit("official", official);
  }
};

struct SoftNmsOutputs {
  float* decayed;  // [B,N]

  template <class Visit>
  void fields(const Visit& visit) {
    visit("decayed", decayed);
  }
};

// Largest sizes that the kernels take.
struct SoftNmsLimits {
  static constexpr int64_t kMaxBoxes = 0xffffffff;      // CPU: those that are left are counted in 32 bits
  static constexpr int64_t kMaxBoxesCuda = 0x7fffffff;  // a row is an int
};

// The score of a row that is dropped: a NaN.
REFINEDET_HD float dropped_score() { return bits_float(0x7fc00000u); }

// Length that is added to the sides of boxes.
REFINEDET_HD float pixel_of(const SoftNmsOptions& options) { return options.official ? 1.0f : 0.0f; }

// What a score is multiplied by, by the IoU with the box that is picked.
REFINEDET_HD float linear_weight(float iou, float threshold) { return 1.0f - (iou > threshold ? iou : 0.0f); }

REFINEDET_HD float gaussian_weight(float iou, float sigma) { return portable_exp(-(iou * iou) / sigma); }

#if !defined(__CUDACC_RTC__)
namespace cpu {

std::string soft_nms_limits(const SoftNmsInputs& inputs, const SoftNmsOptions& options);
void soft_nms(const SoftNmsInputs& inputs, const SoftNmsOptions& options, const SoftNmsOutputs& outputs);

}  // namespace cpu
#endif
}  // namespace refinedet
