#include "ops/match/match.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "cpu/memory.h"
#include "kernels.h"

#ifdef REFINEDET_WITH_CUDA
#include "ops/match/match_cuda.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "match";
constexpr Kernels kKernels = REFINEDET_KERNELS(match);

// The sizes; arrays come later.
MatchInputs check_shapes(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_labels,
                         const Tensor& gt_offsets) {
  check_shape(kOp, "gt_offsets", gt_offsets, {kAny});
  MatchInputs inputs{};
  inputs.batch = gt_offsets.size(0) - 1;
  check(inputs.batch >= 0, kOp, "gt_offsets is empty, expected one entry more than images");
  inputs.shared_anchors = anchors.dim() == 2;
  if (inputs.shared_anchors) {
    check_shape(kOp, "anchors", anchors, {kAny, 4});
  } else {
    check_shape(kOp, "anchors", anchors, {inputs.batch, kAny, 4});
  }
  inputs.num_anchors = anchors.size(inputs.shared_anchors ? 0 : 1);
  check_shape(kOp, "gt_boxes", gt_boxes, {kAny, 4});
  inputs.num_truths = gt_boxes.size(0);
  check_shape(kOp, "gt_labels", gt_labels, {inputs.num_truths});
  return inputs;
}

// On a GPU nobody checks the values of offsets and labels: that would mean to wait for it.
void check_labels(const Tensor& labels) {
  const int64_t* values = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i)
    check(values[i] >= 1, kOp, "gt_labels[", i, "] is ", values[i], ", expected 1 or more: 0 is the background");
}

void check_offsets(const Tensor& offsets, int64_t num_boxes) {
  const int64_t* values = offsets.const_data_ptr<int64_t>();
  const int64_t last = offsets.numel() - 1;
  check(values[0] == 0 && values[last] == num_boxes, kOp, "gt_offsets runs from ", values[0], " to ", values[last],
        ", expected from 0 to the number of gt_boxes, ", num_boxes);
  for (int64_t b = 0; b < last; ++b)
    check(values[b] <= values[b + 1], kOp, "gt_offsets must ascend, but ", values[b], " is before ", values[b + 1]);
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

int64_t bytes_of_results(const MatchInputs& in) { return in.batch * in.num_anchors * (8 + 16 + 8 + 4); }

Results new_results(const Tensor& like, const MatchInputs& in) {
  const auto result = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return new_tensor(like, shape, type);
  };
  return {result({in.batch, in.num_anchors}, ScalarType::Long),
          result({in.batch, in.num_anchors, 4}, ScalarType::Float),
          result({in.batch, in.num_anchors}, ScalarType::Long), result({in.batch, in.num_anchors}, ScalarType::Float)};
}

MatchOutputs pointers_to(const Results& results) {
  const auto& [labels, targets, indices, ious] = results;
  return {labels.mutable_data_ptr<int64_t>(), targets.mutable_data_ptr<float>(), indices.mutable_data_ptr<int64_t>(),
          ious.mutable_data_ptr<float>()};
}

Results match(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_labels, const Tensor& gt_offsets,
              double iou_threshold, const std::vector<double>& variances) {
  check_same_device(
      kOp, {{"anchors", &anchors}, {"gt_boxes", &gt_boxes}, {"gt_labels", &gt_labels}, {"gt_offsets", &gt_offsets}});
  MatchInputs inputs = check_shapes(anchors, gt_boxes, gt_labels, gt_offsets);
  const MatchOptions options{.iou_threshold = at_least_0(kOp, "iou_threshold", iou_threshold),
                             .variances = to_variances(kOp, variances)};
  kKernels.check_limits(anchors, inputs, options);
  const Tensor dense_anchors = dense_float(kOp, "anchors", anchors);
  const Tensor dense_boxes = dense_float(kOp, "gt_boxes", gt_boxes);
  const Tensor dense_labels = dense_int64(kOp, "gt_labels", gt_labels);
  const Tensor dense_offsets = dense_int64(kOp, "gt_offsets", gt_offsets);
  if (!on_gpu(anchors)) {
    check_labels(dense_labels);
    check_offsets(dense_offsets, inputs.num_truths);
    cpu::keep_memory(bytes_of_results(inputs));
  }
  inputs.anchors = dense_anchors.const_data_ptr<float>();
  inputs.gt_boxes = dense_boxes.const_data_ptr<float>();
  inputs.gt_labels = dense_labels.const_data_ptr<int64_t>();
  inputs.gt_offsets = dense_offsets.const_data_ptr<int64_t>();
  const Results results = new_results(anchors, inputs);
  kKernels.run(anchors, inputs, options, pointers_to(results));
  return results;
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "match(Tensor anchors, Tensor gt_boxes, Tensor gt_labels, Tensor gt_offsets, float iou_threshold, "
      "float[] variances) -> (Tensor labels, Tensor targets, Tensor indices, Tensor ious)");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("match", TORCH_BOX(&match)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, CUDA, m) { m.impl("match", TORCH_BOX(&match)); }
#endif

}  // namespace
}  // namespace refinedet
