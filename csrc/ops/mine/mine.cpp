#include "ops/mine/mine.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "kernels.h"

#ifdef REFINEDET_WITH_CUDA
#include "ops/mine/mine_cuda.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "mine";
constexpr Kernels kKernels = REFINEDET_KERNELS(mine);

// The sizes; arrays come later.
MineInputs check_shapes(const Tensor& losses, const Tensor& labels, const Tensor& ious,
                        const std::optional<Tensor>& objectness) {
  check_shape(kOp, "labels", labels, {kAny, kAny});
  MineInputs inputs{};
  inputs.batch = labels.size(0);
  inputs.num_anchors = labels.size(1);
  if (losses.dim() == 3) {
    check_shape(kOp, "losses", losses, {inputs.batch, inputs.num_anchors, kAny});
    inputs.num_classes = losses.size(2);
    check(inputs.num_classes > 0, kOp, "losses are logits of 0 classes, expected at least 1");
  } else {
    check_shape(kOp, "losses", losses, {inputs.batch, inputs.num_anchors});
  }
  check_shape(kOp, "ious", ious, {inputs.batch, inputs.num_anchors});
  if (objectness) check_shape(kOp, "objectness", *objectness, {inputs.batch, inputs.num_anchors});
  return inputs;
}

std::optional<Tensor> dense_objectness_of(const std::optional<Tensor>& objectness) {
  if (!objectness) return std::nullopt;
  return dense_float(kOp, "objectness", *objectness);
}

Tensor mine(const Tensor& losses, const Tensor& labels, const Tensor& ious, const std::optional<Tensor>& objectness,
            double negative_iou, double negative_ratio, double objectness_threshold) {
  check_same_device(
      kOp, {{"losses", &losses}, {"labels", &labels}, {"ious", &ious}, {"objectness", pointer_to(objectness)}});
  MineInputs inputs = check_shapes(losses, labels, ious, objectness);
  const MineOptions options{.negative_iou = at_least_0(kOp, "negative_iou", negative_iou),
                            .negative_ratio = at_least_0<double>(kOp, "negative_ratio", negative_ratio),
                            .objectness_threshold = number(kOp, "objectness_threshold", objectness_threshold)};
  kKernels.check_limits(losses, inputs, options);
  const Tensor dense_losses = dense_input(kOp, "losses", losses);
  const Tensor dense_labels = dense_int64(kOp, "labels", labels);
  const Tensor dense_ious = dense_float(kOp, "ious", ious);
  const std::optional<Tensor> dense_objectness = dense_objectness_of(objectness);
  inputs.type = input_type(dense_losses);
  inputs.losses = dense_losses.const_data_ptr();
  inputs.labels = dense_labels.const_data_ptr<int64_t>();
  inputs.ious = dense_ious.const_data_ptr<float>();
  inputs.objectness = dense_objectness ? dense_objectness->const_data_ptr<float>() : nullptr;
  const Tensor mask = new_tensor(dense_labels, {inputs.batch, inputs.num_anchors}, ScalarType::Bool);
  kKernels.run(losses, inputs, options, {.mask = mask.mutable_data_ptr<bool>()});
  return mask;
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "mine(Tensor losses, Tensor labels, Tensor ious, Tensor? objectness, float negative_iou, float negative_ratio, "
      "float objectness_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("mine", TORCH_BOX(&mine)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, CUDA, m) { m.impl("mine", TORCH_BOX(&mine)); }
#endif

}  // namespace
}  // namespace refinedet
