// mine: the hard negatives of each image (spec section 7.3).
//
//   losses      [B,N]             background loss of each anchor, or [B,N,C] logits (class 0 = background), then the
//                                 loss is -ln(max(p0, FLT_MIN)) of their softmax
//   labels      [B,N] int64       0 = unmatched, positive = matched; negative = neither: never selected, not counted
//   ious        [B,N]             best IoU with the ground truth
//   objectness  [B,N] or none     probability that the anchor is an object
// ->
//   mask        [B,N] bool        true = selected negative
//
// Eligible: label 0, iou < negative_iou, objectness >= objectness_threshold (both compared in float32) and the loss is
// not NaN. Of an image with P positives the floor(negative_ratio * P) eligible anchors of largest loss are selected,
// or all if there are fewer. Ties: lowest anchor. Logits are ranked by p0, ascending: the same order without logarithm.
// float16 and bfloat16 are computed in float32.
#pragma once

#include "box_math.h"

namespace refinedet::cpu {

struct MineInput {
  const float* losses;
  int64_t num_classes;  // of the logits; 0 = `losses` are losses
  const int64_t* labels;
  const float* ious;
  const float* objectness;  // null = none
  int64_t batch, num_anchors;
  float negative_iou, objectness_threshold;
  double negative_ratio;
};

#if !defined(__CUDACC_RTC__)
void mine(const MineInput& in, bool* mask);
#endif

}  // namespace refinedet::cpu
