#include "ops/mine.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "ops/checks.h"

namespace refinedet {

namespace {

constexpr const char* kOp = "mine";

Tensor mine_cpu(const Tensor& losses, const Tensor& labels, const Tensor& ious, const std::optional<Tensor>& objectness,
                double negative_iou, double negative_ratio, double objectness_threshold) {
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

  const Tensor dense_losses = dense_float(kOp, "losses", losses);
  const Tensor dense_labels = dense_int64(kOp, "labels", labels);
  const Tensor dense_ious = dense_float(kOp, "ious", ious);
  std::optional<Tensor> dense_objectness;
  if (objectness) dense_objectness = dense_float(kOp, "objectness", *objectness);
  Tensor mask = torch::stable::new_empty(dense_labels, {batch, num_anchors}, ScalarType::Bool);
  const cpu::MineInput in{.losses = dense_losses.const_data_ptr<float>(),
                          .num_classes = logits ? losses.size(2) : 0,
                          .labels = dense_labels.const_data_ptr<int64_t>(),
                          .ious = dense_ious.const_data_ptr<float>(),
                          .objectness = objectness ? dense_objectness->const_data_ptr<float>() : nullptr,
                          .batch = batch,
                          .num_anchors = num_anchors,
                          .negative_iou = static_cast<float>(negative_iou),
                          .objectness_threshold = static_cast<float>(objectness_threshold),
                          .negative_ratio = negative_ratio};
  cpu::mine(in, mask.mutable_data_ptr<bool>());
  return mask;
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "mine(Tensor losses, Tensor labels, Tensor ious, Tensor? objectness, float negative_iou, float negative_ratio, "
      "float objectness_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("mine", TORCH_BOX(&mine_cpu)); }

}  // namespace
}  // namespace refinedet
