#include "ops/nms.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "ops/checks.h"

namespace refinedet {
namespace {

constexpr const char* kOp = "nms";
constexpr int64_t kMaxBoxes = int64_t{1} << 32;  // an index is half of a 64-bit sort key

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels, double iou_threshold) {
  check_shape(kOp, "boxes", boxes, {kAny, 4});
  const int64_t num_boxes = boxes.size(0);
  check_shape(kOp, "scores", scores, {num_boxes});
  if (labels) check_shape(kOp, "labels", *labels, {num_boxes});
  check(num_boxes < kMaxBoxes, kOp, "boxes holds ", num_boxes, " boxes, expected fewer than 2^32");
  check(iou_threshold >= 0, kOp, "iou_threshold must be at least 0, got ", iou_threshold);
  const Tensor dense_boxes = dense_float(kOp, "boxes", boxes);
  const Tensor dense_scores = dense_float(kOp, "scores", scores);
  std::optional<Tensor> dense_labels;
  if (labels) dense_labels = dense_int64(kOp, "labels", *labels);

  std::vector<int64_t> kept(num_boxes);
  const int64_t count =
      cpu::nms(dense_boxes.const_data_ptr<float>(), dense_scores.const_data_ptr<float>(),
               dense_labels ? dense_labels->const_data_ptr<int64_t>() : nullptr, num_boxes,
               static_cast<float>(iou_threshold), kept.data());
  const Tensor result = torch::stable::new_empty(dense_boxes, {count}, ScalarType::Long);
  std::copy_n(kept.data(), count, result.mutable_data_ptr<int64_t>());
  return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def("nms(Tensor boxes, Tensor scores, Tensor? labels, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("nms", TORCH_BOX(&nms_cpu)); }

}  // namespace
}  // namespace refinedet
