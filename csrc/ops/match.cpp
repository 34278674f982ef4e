#include "ops/match.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "ops/checks.h"

namespace refinedet {

namespace {

constexpr const char* kOp = "match";

void check_offsets(const Tensor& offsets, int64_t num_boxes) {
  const int64_t* values = offsets.const_data_ptr<int64_t>();
  const int64_t last = offsets.numel() - 1;
  check(values[0] == 0 && values[last] == num_boxes, kOp, "gt_offsets runs from ", values[0], " to ", values[last],
        ", expected from 0 to the number of gt_boxes, ", num_boxes);
  for (int64_t b = 0; b < last; ++b)
    check(values[b] <= values[b + 1], kOp, "gt_offsets must ascend, but ", values[b], " is before ", values[b + 1]);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> match_cpu(const Tensor& anchors, const Tensor& gt_boxes,
                                                     const Tensor& gt_labels, const Tensor& gt_offsets,
                                                     double iou_threshold, const std::vector<double>& variances) {
  check_shape(kOp, "gt_offsets", gt_offsets, {kAny});
  const int64_t batch = gt_offsets.size(0) - 1;
  check(batch >= 0, kOp, "gt_offsets is empty, expected one entry more than images");
  const bool shared_anchors = anchors.dim() == 2;
  if (shared_anchors) {
    check_shape(kOp, "anchors", anchors, {kAny, 4});
  } else {
    check_shape(kOp, "anchors", anchors, {batch, kAny, 4});
  }
  check_shape(kOp, "gt_boxes", gt_boxes, {kAny, 4});
  const int64_t num_anchors = anchors.size(shared_anchors ? 0 : 1), num_boxes = gt_boxes.size(0);
  check_shape(kOp, "gt_labels", gt_labels, {num_boxes});
  check(num_boxes <= std::numeric_limits<int32_t>::max(), kOp, "gt_boxes has ", num_boxes, " rows, at most 2^31 - 1");
  const Tensor dense_anchors = dense_float(kOp, "anchors", anchors);
  const Tensor dense_boxes = dense_float(kOp, "gt_boxes", gt_boxes);
  const Tensor dense_labels = dense_int64(kOp, "gt_labels", gt_labels);
  const Tensor dense_offsets = dense_int64(kOp, "gt_offsets", gt_offsets);
  check_offsets(dense_offsets, num_boxes);

  Tensor labels = torch::stable::new_empty(dense_labels, {batch, num_anchors});
  Tensor targets = torch::stable::new_empty(dense_anchors, {batch, num_anchors, 4});
  Tensor indices = torch::stable::new_empty(dense_labels, {batch, num_anchors});
  Tensor ious = torch::stable::new_empty(dense_anchors, {batch, num_anchors});
  const cpu::MatchInput in{.anchors = dense_anchors.const_data_ptr<float>(),
                           .shared_anchors = shared_anchors,
                           .gt_boxes = dense_boxes.const_data_ptr<float>(),
                           .gt_labels = dense_labels.const_data_ptr<int64_t>(),
                           .gt_offsets = dense_offsets.const_data_ptr<int64_t>(),
                           .batch = batch,
                           .num_anchors = num_anchors,
                           .iou_threshold = static_cast<float>(iou_threshold),
                           .variances = to_variances(kOp, variances)};
  cpu::match(in, {.labels = labels.mutable_data_ptr<int64_t>(),
                  .targets = targets.mutable_data_ptr<float>(),
                  .indices = indices.mutable_data_ptr<int64_t>(),
                  .ious = ious.mutable_data_ptr<float>()});
  return {labels, targets, indices, ious};
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "match(Tensor anchors, Tensor gt_boxes, Tensor gt_labels, Tensor gt_offsets, float iou_threshold, "
      "float[] variances) -> (Tensor labels, Tensor targets, Tensor indices, Tensor ious)");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("match", TORCH_BOX(&match_cpu)); }

}  // namespace
}  // namespace refinedet
