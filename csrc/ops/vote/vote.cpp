#include "ops/vote/vote.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "kernels.h"

#ifdef REFINEDET_WITH_CUDA
#include "cuda/order.h"
#include "ops/vote/vote_cuda.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "vote";
constexpr Kernels kKernels = REFINEDET_KERNELS(vote);

// The sizes; arrays come later.
VoteInputs check_shapes(const Tensor& boxes, const Tensor& scores, const Tensor& labels) {
  check_shape(kOp, "boxes", boxes, {kAny, kAny, 4});
  VoteInputs inputs{};
  inputs.batch = boxes.size(0);
  inputs.num_boxes = boxes.size(1);
  check_shape(kOp, "scores", scores, {inputs.batch, inputs.num_boxes});
  check_shape(kOp, "labels", labels, {inputs.batch, inputs.num_boxes});
  return inputs;
}

#ifdef REFINEDET_WITH_CUDA
// The values at these positions within the last dimension.
Tensor gathered(const Tensor& values, const Tensor& positions) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(values), from(int64_t{-1}), from(positions), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::gather", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}
#endif

std::tuple<Tensor, Tensor> vote(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double iou_threshold,
                                bool soft, double score_threshold, bool official) {
  check_same_device(kOp, {{"boxes", &boxes}, {"scores", &scores}, {"labels", &labels}});
  VoteInputs inputs = check_shapes(boxes, scores, labels);
  const VoteOptions options{.iou_threshold = at_least_0(kOp, "iou_threshold", iou_threshold),
                            .soft = soft,
                            .score_threshold = number(kOp, "score_threshold", score_threshold),
                            .official = official};
  kKernels.check_limits(boxes, inputs, options);
  const Tensor dense_boxes = dense_input(kOp, "boxes", boxes);
  const Tensor dense_scores = dense_float(kOp, "scores", scores);
  const Tensor dense_labels = dense_int64(kOp, "labels", labels);
  inputs.type = input_type(dense_boxes);
  inputs.boxes = dense_boxes.const_data_ptr();
  inputs.scores = dense_scores.const_data_ptr<float>();
  inputs.labels = dense_labels.const_data_ptr<int64_t>();
  const Tensor found_boxes = new_tensor(dense_boxes, {inputs.batch, inputs.num_boxes, 4}, ScalarType::Float);
  const Tensor found_scores = new_tensor(dense_boxes, {inputs.batch, inputs.num_boxes}, ScalarType::Float);
  const VoteOutputs outputs{.found_boxes = found_boxes.mutable_data_ptr<float>(),
                            .found_scores = found_scores.mutable_data_ptr<float>()};
#ifdef REFINEDET_WITH_CUDA
  if (on_gpu(boxes)) {
    const Tensor by_score = cuda::stable_order(dense_scores, true);
    const Tensor by_label = cuda::stable_order(gathered(dense_labels, by_score), false);
    inputs.by_score = by_score.const_data_ptr<int64_t>();
    inputs.by_label = by_label.const_data_ptr<int64_t>();
    kKernels.run(boxes, inputs, options, outputs);
    return {found_boxes, found_scores};
  }
#endif
  kKernels.run(boxes, inputs, options, outputs);
  return {found_boxes, found_scores};
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "vote(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold, bool soft, float score_threshold, "
      "bool official) -> (Tensor found_boxes, Tensor found_scores)");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("vote", TORCH_BOX(&vote)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, CUDA, m) { m.impl("vote", TORCH_BOX(&vote)); }
#endif

}  // namespace
}  // namespace refinedet
