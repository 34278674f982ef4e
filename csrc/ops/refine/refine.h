// refine: moves anchors by predicted offsets. Both stages of the detector use it (spec section 6).
//
//   anchors  [N,4] or [B,N,4]  cx, cy, w, h
//   offsets  [B,N,4]           encoded dx, dy, dw, dh
//   refined  [B,N,4] float32   cx, cy, w, h; neither clipped nor clamped
//
// float16, bfloat16 and float64 inputs are converted to float32; computation is float32. B = 0 and N = 0 give an empty
// result. NaN and inf pass through by the rules of IEEE arithmetic; a width too large for float32 becomes inf.
#pragma once

#include "box_math.h"
#include "input_type.h"
#include "size_limits.h"

namespace refinedet {

struct RefineInputs {
  InputType type;        // of the offsets
  const float* anchors;  // [N,4], or [B,N,4] unless shared_anchors
  const void* offsets;   // [B,N,4]
  int64_t batch, num_anchors;
  bool shared_anchors;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("type", type);
    visit("anchors", anchors);
    visit("offsets", offsets);
    visit("batch", batch);
    visit("num_anchors", num_anchors);
    visit("shared_anchors", shared_anchors);
  }
};

struct RefineOptions {
  Variances variances;

  template <class Visit>
  void fields(const Visit& visit) {
    visit("variances", variances);
  }
};

struct RefineOutputs {
  float* refined;  // [B,N,4]

  template <class Visit>
  void fields(const Visit& visit) {
    visit("refined", refined);
  }
};

#if !defined(__CUDACC_RTC__)
namespace cpu {

std::string refine_limits(const RefineInputs& inputs, const RefineOptions& options);
void refine(const RefineInputs& inputs, const RefineOptions& options, const RefineOutputs& outputs);

}  // namespace cpu
#endif
}  // namespace refinedet
