#include "ops/soft_nms/soft_nms.h"

#include <torch/csrc/stable/library.h>

#include "kernels.h"

#ifdef REFINEDET_WITH_CUDA
#include "cuda/order.h"
#include "ops/soft_nms/soft_nms_cuda.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "soft_nms";
constexpr Kernels kKernels = REFINEDET_KERNELS(soft_nms);

// The sizes; arrays come later.
SoftNmsInputs check_shapes(const Tensor& boxes, const Tensor& scores, const Tensor& labels) {
  check_shape(kOp, "boxes", boxes, {kAny, kAny, 4});
  SoftNmsInputs inputs{};
  inputs.batch = boxes.size(0);
  inputs.num_boxes = boxes.size(1);
  check_shape(kOp, "scores", scores, {inputs.batch, inputs.num_boxes});
  check_shape(kOp, "labels", labels, {inputs.batch, inputs.num_boxes});
  return inputs;
}

Tensor soft_nms(const Tensor& boxes, const Tensor& scores, const Tensor& labels, bool gaussian, double iou_threshold,
                double sigma, double score_threshold, bool official) {
  check_same_device(kOp, {{"boxes", &boxes}, {"scores", &scores}, {"labels", &labels}});
  SoftNmsInputs inputs = check_shapes(boxes, scores, labels);
  const SoftNmsOptions options{.gaussian = gaussian,
                               .iou_threshold = at_least_0(kOp, "iou_threshold", iou_threshold),
                               .sigma = above_0(kOp, "sigma", sigma),
                               .score_threshold = number(kOp, "score_threshold", score_threshold),
                               .official = official};
  kKernels.check_limits(boxes, inputs, options);
  const Tensor dense_boxes = dense_input(kOp, "boxes", boxes);
  const Tensor dense_scores = dense_float(kOp, "scores", scores);
  const Tensor dense_labels = dense_int64(kOp, "labels", labels);
  inputs.type = input_type(dense_boxes);
  inputs.boxes = dense_boxes.const_data_ptr();
  inputs.scores = dense_scores.const_data_ptr<float>();
  inputs.labels = dense_labels.const_data_ptr<int64_t>();
  const Tensor decayed = new_tensor(dense_scores, {inputs.batch, inputs.num_boxes}, ScalarType::Float);
  const SoftNmsOutputs outputs{.decayed = decayed.mutable_data_ptr<float>()};
#ifdef REFINEDET_WITH_CUDA
  if (on_gpu(boxes)) {
    const Tensor order = cuda::stable_order(dense_labels, false);
    inputs.order = order.const_data_ptr<int64_t>();
    kKernels.run(boxes, inputs, options, outputs);
    return decayed;
  }
#endif
  kKernels.run(boxes, inputs, options, outputs);
  return decayed;
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor labels, bool gaussian, float iou_threshold, float sigma, "
      "float score_threshold, bool official) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("soft_nms", TORCH_BOX(&soft_nms)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, CUDA, m) { m.impl("soft_nms", TORCH_BOX(&soft_nms)); }
#endif

}  // namespace
}  // namespace refinedet
