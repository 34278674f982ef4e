// detect: from raw network outputs to detections, fused (spec section 8).
//
//   arm_loc   [B,N,4]    offsets of the refinement stage; absent = no cascade, the plain anchors are decoded
//   arm_conf  [B,N,2]    logits (background, object); absent = no filter
//   odm_loc   [B,N,4]    offsets of the detection stage
//   odm_conf  [B,N,C]    logits, class 0 = background
//   anchors   [N,4]      cx, cy, w, h in units of the image side
//
// The outputs come whole or in 2 to 4 levels, [B,n,*] each, of n consecutive anchors of every image. A head map in NHWC
// order, [B,h,w,3 * k], is just that for the n = 3 * h * w anchors of its level, so it is read where it lies.
//
//   boxes     [B,K,4] float32   corners x1, y1, x2, y2, not clipped   | K = keep_top_k rows per image, whatever
//   scores    [B,K]   float32   probability of the class              | is found; rows from counts[b] on are padding:
//   labels    [B,K]   int64     1 .. C-1                              | box 0, score 0, label 0, index -1
//   indices   [B,K]   int64     anchor of the detection               |
//   counts    [B]     int64
//
// 1. An anchor with P(object) < objectness_threshold is dropped.
// 2. Softmax over the C logits, summed in class order. A candidate is an anchor in a class >= 1 with
//    score > score_threshold.
// 3. box = corners of decode(decode(anchor, arm_loc), odm_loc).
// 4. Per class: the best top_k candidates, greedily suppressed: intersection > iou_threshold * union with a kept box.
// 5. Per image: the best keep_top_k of all classes.
// The order is total everywhere: score descending, then anchor ascending, then class ascending. It decides the cuts at
// top_k and keep_top_k, who suppresses whom, and the order of the rows.
//
// A NaN objectness, a NaN score (any NaN or +inf logit makes the anchor's scores NaN) and a box with a coordinate that
// is not finite are dropped before step 4. A box without area overlaps nothing and is kept. iou_threshold is not
// negative and not NaN; top_k and keep_top_k are at least 1; N * C < 2^32. B = 0, N = 0 and C = 1 give no detections.
// float16, bfloat16 and float64 inputs are converted to float32; all arithmetic is float32 as in box_math.h.
#pragma once

#include "box_math.h"
#include "input_type.h"
#include "size_limits.h"

namespace refinedet {

constexpr int kMaxLevels = 4;  // RefineDet has strides 8, 16, 32, 64

// Aligned to an element.
struct DetectLevel {
  const void* arm_loc;   // may be null, in all levels or none
  const void* arm_conf;  // may be null, in all levels or none
  const void* odm_loc;
  const void* odm_conf;
  int64_t num_anchors;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("arm_loc", arm_loc);
    visit("arm_conf", arm_conf);
    visit("odm_loc", odm_loc);
    visit("odm_conf", odm_conf);
    visit("num_anchors", num_anchors);
  }
};

struct DetectInputs {
  InputType type;  // of all levels
  int num_levels;
  DetectLevel levels[kMaxLevels];
  const float* anchors;  // of all levels
  int64_t batch, num_anchors, num_classes;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("type", type);
    visit("levels", levels, num_levels);
    visit("anchors", anchors);
    visit("batch", batch);
    visit("num_anchors", num_anchors);
    visit("num_classes", num_classes);
  }
};

struct DetectOptions {
  float objectness_threshold, score_threshold, iou_threshold;
  int64_t top_k, keep_top_k;
  Variances variances;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("objectness_threshold", objectness_threshold);
    visit("score_threshold", score_threshold);
    visit("iou_threshold", iou_threshold);
    visit("top_k", top_k);
    visit("keep_top_k", keep_top_k);
    visit("variances", variances);
  }
};

struct DetectOutputs {
  float* boxes;
  float* scores;
  int64_t* labels;
  int64_t* indices;
  int64_t* counts;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("boxes", boxes);
    visit("scores", scores);
    visit("labels", labels);
    visit("indices", indices);
    visit("counts", counts);
  }
};

// Largest sizes that the kernels take.
struct DetectLimits {
  static constexpr int64_t kMaxScores = 0xffffffff;  // of an image: (anchor, class) is half of a 64-bit sort key
  // CUDA:
  static constexpr int64_t kMaxTopK = 2048;      // keys and kept boxes of a class fit in the 48 KiB of shared memory
  static constexpr int64_t kMaxKeepTopK = 1024;  //   that every GPU gives a block
  static constexpr int64_t kMaxClasses = 4095;   // the exponentials of an anchor fit in 16 KiB of shared memory
};

#if !defined(__CUDACC_RTC__)
namespace cpu {

std::string detect_limits(const DetectInputs& inputs, const DetectOptions& options);
void detect(const DetectInputs& inputs, const DetectOptions& options, const DetectOutputs& outputs);

}  // namespace cpu
#endif
}  // namespace refinedet
