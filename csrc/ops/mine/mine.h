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
#include "input_type.h"
#include "size_limits.h"

namespace refinedet {

struct MineInputs {
  InputType type;      // of the losses
  const void* losses;  // [B,N], or logits [B,N,C]
  const int64_t* labels;
  const float* ious;
  const float* objectness;  // may be null: none
  int64_t batch, num_anchors;
  int64_t num_classes;  // of the logits; 0 = `losses` are losses

  template <class Visit>
  void fields(const Visit& visit) {
    visit("type", type);
    visit("losses", losses);
    visit("labels", labels);
    visit("ious", ious);
    visit("objectness", objectness);
    visit("batch", batch);
    visit("num_anchors", num_anchors);
    visit("num_classes", num_classes);
  }
};

struct MineOptions {
  float negative_iou;
  double negative_ratio;
  float objectness_threshold;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("negative_iou", negative_iou);
    visit("negative_ratio", negative_ratio);
    visit("objectness_threshold", objectness_threshold);
  }
};

struct MineOutputs {
  bool* mask;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("mask", mask);
  }
};

// Largest sizes that the kernels of CUDA take; the CPU's take any.
struct MineLimits {
  static constexpr int64_t kMaxAnchors = 0x7fffffff;  // an index is a word of a sort key, a count an int
  static constexpr int64_t kMaxClasses = 4095;        // the exponentials of an anchor fit in 16 KiB of shared memory
};

#if !defined(__CUDACC_RTC__)
namespace cpu {

std::string mine_limits(const MineInputs& inputs, const MineOptions& options);
void mine(const MineInputs& inputs, const MineOptions& options, const MineOutputs& outputs);

}  // namespace cpu
#endif
}  // namespace refinedet
