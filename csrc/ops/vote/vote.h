// vote: box voting and soft box voting (spec section 10.4), which merge what several passes found in an image.
//
//   boxes   [B,N,4]         corners x1, y1, x2, y2, any unit
//   scores  [B,N]
//   labels  [B,N] int64     any values; <= 0 is padding. Boxes of different labels never meet
//   found boxes   [B,N,4]   what comes out of a row; 0 where nothing does
//   found scores  [B,N]     NaN where nothing does
//
// Within a class of an image boxes rank by score descending, equal scores by row ascending. The first one that is in no
// cluster yet is a top: every later one that is in no cluster either and whose IoU with it reaches iou_threshold joins
// it. A top comes out with its score and the mean of its cluster's corners, weighted by score: float32, products and
// sums one after the other in rank order. A score below 0 weighs nothing. A top that nobody joins, and one whose mean
// is not finite (no weight at all, infinite scores, overflow), comes out with its own box. `soft`: a box that joined
// comes out as it is, with score * (1 - IoU with its top), if that reaches score_threshold.
//
// IoU (any_iou of box_math.h) is 0 where a box has no area, and where areas overflow. A threshold of 0 is reached
// by every box: the class becomes one cluster. `official`: a side is one longer, as of boxes of whole pixels. Rows with
// a label <= 0, a NaN score or a coordinate that is not finite are dropped. iou_threshold is not negative and not NaN,
// score_threshold is not NaN. float16, bfloat16 and float64 inputs are converted to float32. B = 0 and N = 0 are fine.
#pragma once

#include "box_math.h"
#include "input_type.h"
#include "size_limits.h"

namespace refinedet {

struct VoteInputs {
  InputType type;           // of the boxes
  const void* boxes;        // [B,N,4]
  const float* scores;      // [B,N]
  const int64_t* labels;    // [B,N]
  const int64_t* by_score;  // [B,N] CUDA: rows by score descending, equal ones ascending, NaN scores anywhere
  const int64_t* by_label;  // [B,N] CUDA: places in by_score by label ascending, equal ones ascending
  int64_t batch, num_boxes;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("type", type);
    visit("boxes", boxes);
    visit("scores", scores);
    visit("labels", labels);
    visit("by_score", by_score);
    visit("by_label", by_label);
    visit("batch", batch);
    visit("num_boxes", num_boxes);
  }
};

struct VoteOptions {
  float iou_threshold;
  bool soft;
  float score_threshold;
  bool official;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("iou_threshold", iou_threshold);
    visit("soft", soft);
    visit("score_threshold", score_threshold);
    visit("official", official);
  }
};

struct VoteOutputs {
  float* found_boxes;
  float* found_scores;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("found_boxes", found_boxes);
    visit("found_scores", found_scores);
  }
};

// Largest sizes that the kernels take.
struct VoteLimits {
  static constexpr int64_t kMaxBoxes = 0xffffffff;      // CPU: a row is half of a 64-bit sort key
  static constexpr int64_t kMaxBoxesCuda = 0x7fffffff;  // places in the order are int
};

// What a cluster's mean is made of.
struct Ballot {
  float x1, y1, x2, y2, weight;
};

REFINEDET_HD Ballot ballot_of(Corners box, float score) {
  const float weight = positive(score);
  return {weight * box.x1, weight * box.y1, weight * box.x2, weight * box.y2, weight};
}

REFINEDET_HD Ballot operator+(Ballot a, Ballot b) {
  return {a.x1 + b.x1, a.y1 + b.y1, a.x2 + b.x2, a.y2 + b.y2, a.weight + b.weight};
}

// Of a cluster of several boxes.
REFINEDET_HD Corners elected(Ballot sum, Corners top) {
  const Corners mean{sum.x1 / sum.weight, sum.y1 / sum.weight, sum.x2 / sum.weight, sum.y2 / sum.weight};
  return finite(mean) && finite(sum.weight) ? mean : top;
}

#if !defined(__CUDACC_RTC__)
namespace cpu {

std::string vote_limits(const VoteInputs& inputs, const VoteOptions& options);
void vote(const VoteInputs& inputs, const VoteOptions& options, const VoteOutputs& outputs);

}  // namespace cpu
#endif
}  // namespace refinedet
