#include "ops/mine/mine.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "checks.h"

#ifdef REFINEDET_WITH_CUDA
#include "cuda/arguments.h"
#include "cuda/device.h"
#include "ops/mine/mine_cuda.h"
#endif

namespace refinedet {

namespace {

constexpr const char* kOp = "mine";

struct Sizes {
  int64_t batch, num_anchors;
  int64_t num_classes;  // of logits; 0 = the losses are losses
};

Sizes check_sizes(const Tensor& losses, const Tensor& labels, const Tensor& ious,
                  const std::optional<Tensor>& objectness, double negative_ratio) {
  check_shape(kOp, "labels", labels, {kAny, kAny});
  const int64_t batch = labels.size(0), num_anchors = labels.size(1);
  const bool logits = losses.dim() == 3;
  if (logits) {
    check_shape(kOp, "losses", losses, {batch, num_anchors, kAny});
    check(losses.size(2) > 0, kOp, "losses are logits of 0 classes, expected at least 1");
  } else {
    check_shape(kOp, "losses", losses, {batch, num_anchors});
  }
  check_shape(kOp, "ious", ious, {batch, num_anchors});
  if (objectness) check_shape(kOp, "objectness", *objectness, {batch, num_anchors});
  check(negative_ratio >= 0, kOp, "negative_ratio is ", negative_ratio, ", expected 0 or more");
  return {batch, num_anchors, logits ? losses.size(2) : 0};
}

std::optional<Tensor> dense_objectness_of(const std::optional<Tensor>& objectness) {
  if (!objectness) return std::nullopt;
  return dense_float(kOp, "objectness", *objectness);
}

Tensor new_mask(const Tensor& labels, const Sizes& sizes) {
  return torch::stable::new_empty(labels, {sizes.batch, sizes.num_anchors}, ScalarType::Bool);
}

Tensor mine_cpu(const Tensor& losses, const Tensor& labels, const Tensor& ious, const std::optional<Tensor>& objectness,
                double negative_iou, double negative_ratio, double objectness_threshold) {
  const Sizes sizes = check_sizes(losses, labels, ious, objectness, negative_ratio);
  const Tensor dense_losses = dense_float(kOp, "losses", losses);
  const Tensor dense_labels = dense_int64(kOp, "labels", labels);
  const Tensor dense_ious = dense_float(kOp, "ious", ious);
  const std::optional<Tensor> dense_objectness = dense_objectness_of(objectness);
  const Tensor mask = new_mask(dense_labels, sizes);
  const cpu::MineInput in{.losses = dense_losses.const_data_ptr<float>(),
                          .num_classes = sizes.num_classes,
                          .labels = dense_labels.const_data_ptr<int64_t>(),
                          .ious = dense_ious.const_data_ptr<float>(),
                          .objectness = objectness ? dense_objectness->const_data_ptr<float>() : nullptr,
                          .batch = sizes.batch,
                          .num_anchors = sizes.num_anchors,
                          .negative_iou = static_cast<float>(negative_iou),
                          .objectness_threshold = static_cast<float>(objectness_threshold),
                          .negative_ratio = negative_ratio};
  cpu::mine(in, mask.mutable_data_ptr<bool>());
  return mask;
}

#ifdef REFINEDET_WITH_CUDA
Tensor mine_cuda(const Tensor& losses, const Tensor& labels, const Tensor& ious,
                 const std::optional<Tensor>& objectness, double negative_iou, double negative_ratio,
                 double objectness_threshold) {
  cuda::check_same_device(
      kOp, {{"losses", &losses}, {"labels", &labels}, {"ious", &ious}, {"objectness", cuda::pointer_to(objectness)}});
  const Sizes sizes = check_sizes(losses, labels, ious, objectness, negative_ratio);
  const cuda::Device device(losses);
  const Tensor dense_losses = cuda::dense_input(kOp, "losses", losses);
  const Tensor dense_labels = dense_int64(kOp, "labels", labels);
  const Tensor dense_ious = dense_float(kOp, "ious", ious);
  const std::optional<Tensor> dense_objectness = dense_objectness_of(objectness);
  const Tensor mask = new_mask(dense_labels, sizes);
  const cuda::MineInput in{.type = cuda::input_type(dense_losses),
                           .losses = dense_losses.const_data_ptr(),
                           .num_classes = sizes.num_classes,
                           .labels = dense_labels.const_data_ptr<int64_t>(),
                           .ious = dense_ious.const_data_ptr<float>(),
                           .objectness = objectness ? dense_objectness->const_data_ptr<float>() : nullptr,
                           .batch = sizes.batch,
                           .num_anchors = sizes.num_anchors,
                           .negative_iou = static_cast<float>(negative_iou),
                           .objectness_threshold = static_cast<float>(objectness_threshold),
                           .negative_ratio = negative_ratio};
  const std::string refusal = cuda::mine_refusal(in);
  check(refusal.empty(), kOp, refusal);
  const Tensor workspace = cuda::new_workspace(dense_losses, cuda::mine_workspace_bytes(in));
  cuda::mine(in, mask.mutable_data_ptr<bool>(), workspace.mutable_data_ptr(), device.stream());
  return mask;
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "mine(Tensor losses, Tensor labels, Tensor ious, Tensor? objectness, float negative_iou, float negative_ratio, "
      "float objectness_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CPU_KEY, m) { m.impl("mine", TORCH_BOX(&mine_cpu)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CUDA_KEY, m) { m.impl("mine", TORCH_BOX(&mine_cuda)); }
#endif

}  // namespace
}  // namespace refinedet
