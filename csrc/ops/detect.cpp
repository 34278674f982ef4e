#include "ops/detect.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "ops/checks.h"

namespace refinedet {
namespace {

constexpr const char* kOp = "detect";
constexpr int64_t kMaxScores = int64_t{1} << 32;  // (anchor, class) is half of a 64-bit sort key

std::optional<Tensor> dense_optional(const char* name, const std::optional<Tensor>& tensor,
                                     std::initializer_list<int64_t> shape) {
  if (!tensor) return std::nullopt;
  check_shape(kOp, name, *tensor, shape);
  return dense_float(kOp, name, *tensor);
}

const float* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> detect_cpu(
    const std::optional<Tensor>& arm_loc, const std::optional<Tensor>& arm_conf, const Tensor& odm_loc,
    const Tensor& odm_conf, const Tensor& anchors, double objectness_threshold, double score_threshold,
    double iou_threshold, int64_t top_k, int64_t keep_top_k, const std::vector<double>& variances) {
  check_shape(kOp, "odm_loc", odm_loc, {kAny, kAny, 4});
  const int64_t batch = odm_loc.size(0), num_anchors = odm_loc.size(1);
  check_shape(kOp, "odm_conf", odm_conf, {batch, num_anchors, kAny});
  check_shape(kOp, "anchors", anchors, {num_anchors, 4});
  const int64_t num_classes = odm_conf.size(2);
  check(num_classes >= 1, kOp, "odm_conf must have at least one class, the background");
  check(num_anchors < kMaxScores / num_classes, kOp, "odm_conf has ", num_anchors, " anchors of ", num_classes,
        " classes, expected fewer than 2^32 scores per image");
  check(iou_threshold >= 0, kOp, "iou_threshold must be at least 0, got ", iou_threshold);
  check(top_k >= 1, kOp, "top_k must be at least 1, got ", top_k);
  check(keep_top_k >= 1, kOp, "keep_top_k must be at least 1, got ", keep_top_k);
  const std::optional<Tensor> dense_arm_loc = dense_optional("arm_loc", arm_loc, {batch, num_anchors, 4});
  const std::optional<Tensor> dense_arm_conf = dense_optional("arm_conf", arm_conf, {batch, num_anchors, 2});
  const Tensor dense_odm_loc = dense_float(kOp, "odm_loc", odm_loc);
  const Tensor dense_odm_conf = dense_float(kOp, "odm_conf", odm_conf);
  const Tensor dense_anchors = dense_float(kOp, "anchors", anchors);

  const auto output = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(dense_odm_loc, shape, type);
  };
  const Tensor boxes = output({batch, keep_top_k, 4}, ScalarType::Float);
  const Tensor scores = output({batch, keep_top_k}, ScalarType::Float);
  const Tensor labels = output({batch, keep_top_k}, ScalarType::Long);
  const Tensor indices = output({batch, keep_top_k}, ScalarType::Long);
  const Tensor counts = output({batch}, ScalarType::Long);
  const DetectInputs inputs{data_or_null(dense_arm_loc),
                            data_or_null(dense_arm_conf),
                            dense_odm_loc.const_data_ptr<float>(),
                            dense_odm_conf.const_data_ptr<float>(),
                            dense_anchors.const_data_ptr<float>(),
                            batch,
                            num_anchors,
                            num_classes};
  const DetectOptions options{static_cast<float>(objectness_threshold),
                              static_cast<float>(score_threshold),
                              static_cast<float>(iou_threshold),
                              top_k,
                              keep_top_k,
                              to_variances(kOp, variances)};
  const DetectOutputs outputs{boxes.mutable_data_ptr<float>(), scores.mutable_data_ptr<float>(),
                              labels.mutable_data_ptr<int64_t>(), indices.mutable_data_ptr<int64_t>(),
                              counts.mutable_data_ptr<int64_t>()};
  cpu::detect(inputs, options, outputs);
  return {boxes, scores, labels, indices, counts};
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "detect(Tensor? arm_loc, Tensor? arm_conf, Tensor odm_loc, Tensor odm_conf, Tensor anchors, "
      "float objectness_threshold, float score_threshold, float iou_threshold, int top_k, int keep_top_k, "
      "float[] variances) -> (Tensor boxes, Tensor scores, Tensor labels, Tensor indices, Tensor counts)");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("detect", TORCH_BOX(&detect_cpu)); }

}  // namespace
}  // namespace refinedet
