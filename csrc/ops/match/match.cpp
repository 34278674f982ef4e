#include "ops/match/match.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "checks.h"

#ifdef REFINEDET_WITH_CUDA
#include "cuda/arguments.h"
#include "cuda/device.h"
#include "ops/match/match_cuda.h"
#endif

namespace refinedet {

namespace {

constexpr const char* kOp = "match";

struct Sizes {
  int64_t batch, num_anchors, num_boxes;
  bool shared_anchors;
};

Sizes check_sizes(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_labels, const Tensor& gt_offsets) {
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
  return {batch, num_anchors, num_boxes, shared_anchors};
}

void check_offsets(const Tensor& offsets, int64_t num_boxes) {
  const int64_t* values = offsets.const_data_ptr<int64_t>();
  const int64_t last = offsets.numel() - 1;
  check(values[0] == 0 && values[last] == num_boxes, kOp, "gt_offsets runs from ", values[0], " to ", values[last],
        ", expected from 0 to the number of gt_boxes, ", num_boxes);
  for (int64_t b = 0; b < last; ++b)
    check(values[b] <= values[b + 1], kOp, "gt_offsets must ascend, but ", values[b], " is before ", values[b + 1]);
}

// Contiguous arguments and the results, with pointers to both as the kernels want them.
struct Request {
  Tensor anchors, gt_boxes, gt_labels, gt_offsets;
  Tensor labels, targets, indices, ious;
  cpu::MatchInput in;
  cpu::MatchOutput out;
};

Request new_request(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_labels, const Tensor& gt_offsets,
                    const Sizes& sizes, double iou_threshold, const std::vector<double>& variances) {
  Request r{.anchors = dense_float(kOp, "anchors", anchors),
            .gt_boxes = dense_float(kOp, "gt_boxes", gt_boxes),
            .gt_labels = dense_int64(kOp, "gt_labels", gt_labels),
            .gt_offsets = dense_int64(kOp, "gt_offsets", gt_offsets),
            .labels = torch::stable::new_empty(gt_labels, {sizes.batch, sizes.num_anchors}, ScalarType::Long),
            .targets = torch::stable::new_empty(anchors, {sizes.batch, sizes.num_anchors, 4}, ScalarType::Float),
            .indices = torch::stable::new_empty(gt_labels, {sizes.batch, sizes.num_anchors}, ScalarType::Long),
            .ious = torch::stable::new_empty(anchors, {sizes.batch, sizes.num_anchors}, ScalarType::Float),
            .in = {},
            .out = {}};
  r.in = {.anchors = r.anchors.const_data_ptr<float>(),
          .shared_anchors = sizes.shared_anchors,
          .gt_boxes = r.gt_boxes.const_data_ptr<float>(),
          .gt_labels = r.gt_labels.const_data_ptr<int64_t>(),
          .gt_offsets = r.gt_offsets.const_data_ptr<int64_t>(),
          .batch = sizes.batch,
          .num_anchors = sizes.num_anchors,
          .iou_threshold = static_cast<float>(iou_threshold),
          .variances = to_variances(kOp, variances)};
  r.out = {.labels = r.labels.mutable_data_ptr<int64_t>(),
           .targets = r.targets.mutable_data_ptr<float>(),
           .indices = r.indices.mutable_data_ptr<int64_t>(),
           .ious = r.ious.mutable_data_ptr<float>()};
  return r;
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Results match_cpu(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_labels, const Tensor& gt_offsets,
                  double iou_threshold, const std::vector<double>& variances) {
  const Sizes sizes = check_sizes(anchors, gt_boxes, gt_labels, gt_offsets);
  const Request r = new_request(anchors, gt_boxes, gt_labels, gt_offsets, sizes, iou_threshold, variances);
  check_offsets(r.gt_offsets, sizes.num_boxes);
  cpu::match(r.in, r.out);
  return {r.labels, r.targets, r.indices, r.ious};
}

#ifdef REFINEDET_WITH_CUDA
Results match_cuda(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_labels, const Tensor& gt_offsets,
                   double iou_threshold, const std::vector<double>& variances) {
  cuda::check_same_device(
      kOp,
      {{"anchors", &anchors}, {"gt_boxes", &gt_boxes}, {"gt_labels", &gt_labels}, {"gt_offsets", &gt_offsets}});
  const Sizes sizes = check_sizes(anchors, gt_boxes, gt_labels, gt_offsets);
  const cuda::Device device(anchors);
  const Request r = new_request(anchors, gt_boxes, gt_labels, gt_offsets, sizes, iou_threshold, variances);
  const std::string refusal = cuda::match_refusal(r.in, sizes.num_boxes);
  check(refusal.empty(), kOp, refusal);
  const Tensor workspace = cuda::new_workspace(anchors, cuda::match_workspace_bytes(r.in, sizes.num_boxes));
  cuda::match(r.in, sizes.num_boxes, r.out, workspace.mutable_data_ptr(), device.stream());
  return {r.labels, r.targets, r.indices, r.ious};
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "match(Tensor anchors, Tensor gt_boxes, Tensor gt_labels, Tensor gt_offsets, float iou_threshold, "
      "float[] variances) -> (Tensor labels, Tensor targets, Tensor indices, Tensor ious)");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CPU_KEY, m) { m.impl("match", TORCH_BOX(&match_cpu)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CUDA_KEY, m) { m.impl("match", TORCH_BOX(&match_cuda)); }
#endif

}  // namespace
}  // namespace refinedet
