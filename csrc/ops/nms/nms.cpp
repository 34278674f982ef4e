#include "ops/nms/nms.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <vector>

#include "checks.h"

#ifdef REFINEDET_WITH_CUDA
#include "cuda/arguments.h"
#include "cuda/device.h"
#include "ops/nms/nms_cuda.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "nms";
constexpr int64_t kMaxBoxes = int64_t{1} << 32;  // an index is half of a 64-bit sort key

int64_t check_sizes(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels,
                    double iou_threshold) {
  check_shape(kOp, "boxes", boxes, {kAny, 4});
  const int64_t num_boxes = boxes.size(0);
  check_shape(kOp, "scores", scores, {num_boxes});
  if (labels) check_shape(kOp, "labels", *labels, {num_boxes});
  check(num_boxes < kMaxBoxes, kOp, "boxes holds ", num_boxes, " boxes, expected fewer than 2^32");
  check(iou_threshold >= 0, kOp, "iou_threshold must be at least 0, got ", iou_threshold);
  return num_boxes;
}

std::optional<Tensor> dense_labels_of(const std::optional<Tensor>& labels) {
  if (!labels) return std::nullopt;
  return dense_int64(kOp, "labels", *labels);
}

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels, double iou_threshold) {
  const int64_t num_boxes = check_sizes(boxes, scores, labels, iou_threshold);
  const Tensor dense_boxes = dense_float(kOp, "boxes", boxes);
  const Tensor dense_scores = dense_float(kOp, "scores", scores);
  const std::optional<Tensor> dense_labels = dense_labels_of(labels);

  std::vector<int64_t> kept(num_boxes);
  const int64_t count =
      cpu::nms(dense_boxes.const_data_ptr<float>(), dense_scores.const_data_ptr<float>(),
               dense_labels ? dense_labels->const_data_ptr<int64_t>() : nullptr, num_boxes,
               static_cast<float>(iou_threshold), kept.data());
  const Tensor result = torch::stable::new_empty(dense_boxes, {count}, ScalarType::Long);
  std::copy_n(kept.data(), count, result.mutable_data_ptr<int64_t>());
  return result;
}

#ifdef REFINEDET_WITH_CUDA
// Positions of the scores, highest first, equal scores (-0 and 0 among them) in their order.
Tensor descending_order(const Tensor& scores) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(scores), from(std::optional<bool>(true)), from(int64_t{-1}), from(true)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const Tensor sorted = torch::stable::detail::to<Tensor>(stack[0]);  // takes it over, to free it
  return torch::stable::detail::to<Tensor>(stack[1]);
}

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels, double iou_threshold) {
  cuda::check_same_device(kOp, {{"boxes", &boxes}, {"scores", &scores}, {"labels", cuda::pointer_to(labels)}});
  const int64_t num_boxes = check_sizes(boxes, scores, labels, iou_threshold);
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
  check(num_boxes <= kLimit, kOp, "boxes holds ", num_boxes, " boxes, on CUDA at most ", kLimit);
  const cuda::Device device(boxes);
  const Tensor dense_boxes = cuda::dense_input(kOp, "boxes", boxes);
  const Tensor dense_scores = dense_float(kOp, "scores", scores);
  const std::optional<Tensor> dense_labels = dense_labels_of(labels);
  const Tensor order = descending_order(dense_scores);
  Tensor kept = torch::stable::new_empty(dense_boxes, {num_boxes}, ScalarType::Long);
  const Tensor count = torch::stable::new_empty(dense_boxes, {1}, ScalarType::Long);
  const Tensor workspace = cuda::new_workspace(dense_boxes, cuda::nms_workspace_bytes(num_boxes));
  const cuda::NmsInputs inputs{.type = cuda::input_type(dense_boxes),
                               .boxes = dense_boxes.const_data_ptr(),
                               .scores = dense_scores.const_data_ptr<float>(),
                               .labels = dense_labels ? dense_labels->const_data_ptr<int64_t>() : nullptr,
                               .order = order.const_data_ptr<int64_t>(),
                               .num_boxes = num_boxes};
  const cuda::NmsOutputs outputs{kept.mutable_data_ptr<int64_t>(), count.mutable_data_ptr<int64_t>()};
  cuda::nms(inputs, static_cast<float>(iou_threshold), outputs, workspace.mutable_data_ptr(), device.stream());
  return torch::stable::narrow(kept, 0, 0, cuda::read_number(outputs.count, device.stream()));
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def("nms(Tensor boxes, Tensor scores, Tensor? labels, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CPU_KEY, m) { m.impl("nms", TORCH_BOX(&nms_cpu)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CUDA_KEY, m) { m.impl("nms", TORCH_BOX(&nms_cuda)); }
#endif

}  // namespace
}  // namespace refinedet
