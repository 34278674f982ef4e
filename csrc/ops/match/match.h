// match: anchors to ground truth (spec section 7.2), each image on its own.
//
//   anchors     [N,4] or [B,N,4]  cx,cy,w,h
//   gt_boxes    [M,4]             x1,y1,x2,y2; image b owns rows gt_offsets[b] .. gt_offsets[b+1]-1
//   gt_labels   [M] int64         1 or more       | checked on the CPU. On a GPU images that own the same rows get any
//   gt_offsets  [B+1] int64       0 to M, ascending | of their matches; the kernels end and stay inside their arrays.
// ->
//   labels      [B,N] int64       label of the matched ground truth, 0 = unmatched
//   targets     [B,N,4] float32   the matched box encoded against the anchor, 0 where unmatched
//   indices     [B,N] int64       matched ground truth within its image, -1 = unmatched
//   ious        [B,N] float32     best IoU with the ground truth of the image
//
// 1. Bipartite: of all pairs of a free anchor and a free ground truth, the one of largest IoU is matched; again until
//    no pair is left. Ties: lowest anchor, then earliest ground truth.
// 2. Per prediction: an anchor still free takes its best ground truth if their IoU >= iou_threshold. Ties: earliest.
// A pair of IoU <= 1e-6 does not overlap: its IoU is 0. So does a box that is inverted, without area or not finite.
// float16 and bfloat16 are computed in float32. Nothing of size N x M is allocated: memory is O(B N + M).
#pragma once

#include "box_math.h"
#include "size_limits.h"

namespace refinedet {

struct MatchInputs {
  const float* anchors;  // [N,4], or [B,N,4] unless shared_anchors
  const float* gt_boxes;
  const int64_t* gt_labels;
  const int64_t* gt_offsets;
  int64_t batch, num_anchors;
  int64_t num_truths;  // M
  bool shared_anchors;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("anchors", anchors);
    visit("gt_boxes", gt_boxes);
    visit("gt_labels", gt_labels);
    visit("gt_offsets", gt_offsets);
    visit("batch", batch);
    visit("num_anchors", num_anchors);
    visit("num_truths", num_truths);
    visit("shared_anchors", shared_anchors);
  }
};

struct MatchOptions {
  float iou_threshold;
  Variances variances;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("iou_threshold", iou_threshold);
    visit("variances", variances);
  }
};

struct MatchOutputs {
  int64_t* labels;
  float* targets;
  int64_t* indices;
  float* ious;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("labels", labels);
    visit("targets", targets);
    visit("indices", indices);
    visit("ious", ious);
  }
};

// Largest sizes that the kernels take.
struct MatchLimits {
  static constexpr int64_t kMaxAnchors = 0x7fffffff;  // CUDA: an index is a word beside an IoU
  static constexpr int64_t kMaxTruths = 0x7fffffff;   // an index is an int
};

#if !defined(__CUDACC_RTC__)
namespace cpu {

std::string match_limits(const MatchInputs& inputs, const MatchOptions& options);
void match(const MatchInputs& inputs, const MatchOptions& options, const MatchOutputs& outputs);

}  // namespace cpu
#endif
}  // namespace refinedet
