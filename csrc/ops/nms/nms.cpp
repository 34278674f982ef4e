#include "ops/nms/nms.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "kernels.h"

#ifdef REFINEDET_WITH_CUDA
#include "cuda/order.h"
#include "ops/nms/nms_cuda.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "nms";
constexpr Kernels kKernels = REFINEDET_KERNELS(nms);

// The sizes; arrays come later.
NmsInputs check_shapes(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels) {
  check_shape(kOp, "boxes", boxes, {kAny, 4});
  NmsInputs inputs{};
  inputs.num_boxes = boxes.size(0);
  check_shape(kOp, "scores", scores, {inputs.num_boxes});
  if (labels) check_shape(kOp, "labels", *labels, {inputs.num_boxes});
  return inputs;
}

std::optional<Tensor> dense_labels_of(const std::optional<Tensor>& labels) {
  if (!labels) return std::nullopt;
  return dense_int64(kOp, "labels", *labels);
}

// `like`: a tensor of the device.
Tensor run_on_cpu(const Tensor& like, const NmsInputs& inputs, const NmsOptions& options) {
  const auto kept = std::make_unique_for_overwrite<int64_t[]>(inputs.num_boxes);  // no zeros, which touch its pages
  int64_t count = 0;
  kKernels.run(like, inputs, options, {.kept = kept.get(), .count = &count});
  Result result = new_result(like, {count}, ScalarType::Long);
  std::copy_n(kept.get(), count, mutable_data<int64_t>(result));
  return Tensor(result.release());
}

#ifdef REFINEDET_WITH_CUDA
Tensor run_on_gpu(const Tensor& scores, NmsInputs inputs, const NmsOptions& options) {
  const Tensor order = cuda::stable_order(scores, true);
  inputs.order = order.const_data_ptr<int64_t>();
  Tensor kept = torch::stable::new_empty(scores, {inputs.num_boxes}, ScalarType::Long);
  const Tensor count = torch::stable::new_empty(scores, {1}, ScalarType::Long);
  kKernels.run(scores, inputs, options,
               {.kept = kept.mutable_data_ptr<int64_t>(), .count = count.mutable_data_ptr<int64_t>()});
  return torch::stable::narrow(kept, 0, 0, cuda::read_number(count));
}
#endif

Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels, double iou_threshold) {
  check_same_device(kOp, {{"boxes", &boxes}, {"scores", &scores}, {"labels", pointer_to(labels)}});
  NmsInputs inputs = check_shapes(boxes, scores, labels);
  const NmsOptions options{.iou_threshold = at_least_0(kOp, "iou_threshold", iou_threshold)};
  kKernels.check_limits(boxes, inputs, options);
  const Tensor dense_boxes = dense_input(kOp, "boxes", boxes);
  const Tensor dense_scores = dense_float(kOp, "scores", scores);
  const std::optional<Tensor> dense_labels = dense_labels_of(labels);
  inputs.type = input_type(dense_boxes);
  inputs.boxes = dense_boxes.const_data_ptr();
  inputs.scores = dense_scores.const_data_ptr<float>();
  inputs.labels = dense_labels ? dense_labels->const_data_ptr<int64_t>() : nullptr;
#ifdef REFINEDET_WITH_CUDA
  if (on_gpu(boxes)) return run_on_gpu(dense_scores, inputs, options);
#endif
  return run_on_cpu(dense_scores, inputs, options);
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def("nms(Tensor boxes, Tensor scores, Tensor? labels, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("nms", TORCH_BOX(&nms)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, CUDA, m) { m.impl("nms", TORCH_BOX(&nms)); }
#endif

}  // namespace
}  // namespace refinedet
