#include "ops/detect.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "ops/checks.h"

#ifdef REFINEDET_WITH_CUDA
#include "ops/cuda/arguments.h"
#include "ops/cuda/device.h"
#include "ops/cuda/detect.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "detect";
constexpr int64_t kMaxScores = int64_t{1} << 32;  // (anchor, class) is half of a 64-bit sort key

struct Arguments {
  const std::optional<Tensor>&arm_loc, &arm_conf;
  const Tensor &odm_loc, &odm_conf, &anchors;
};

struct Sizes {
  int64_t batch, num_anchors, num_classes;
};

Sizes check_sizes(const Arguments& arguments) {
  check_shape(kOp, "odm_loc", arguments.odm_loc, {kAny, kAny, 4});
  const int64_t batch = arguments.odm_loc.size(0), num_anchors = arguments.odm_loc.size(1);
  check_shape(kOp, "odm_conf", arguments.odm_conf, {batch, num_anchors, kAny});
  check_shape(kOp, "anchors", arguments.anchors, {num_anchors, 4});
  if (arguments.arm_loc) check_shape(kOp, "arm_loc", *arguments.arm_loc, {batch, num_anchors, 4});
  if (arguments.arm_conf) check_shape(kOp, "arm_conf", *arguments.arm_conf, {batch, num_anchors, 2});
  const int64_t num_classes = arguments.odm_conf.size(2);
  check(num_classes >= 1, kOp, "odm_conf must have at least one class, the background");
  check(num_anchors < kMaxScores / num_classes, kOp, "odm_conf has ", num_anchors, " anchors of ", num_classes,
        " classes, expected fewer than 2^32 scores per image");
  return {batch, num_anchors, num_classes};
}

DetectOptions check_options(double objectness_threshold, double score_threshold, double iou_threshold, int64_t top_k,
                            int64_t keep_top_k, const std::vector<double>& variances) {
  check(iou_threshold >= 0, kOp, "iou_threshold must be at least 0, got ", iou_threshold);
  check(top_k >= 1, kOp, "top_k must be at least 1, got ", top_k);
  check(keep_top_k >= 1, kOp, "keep_top_k must be at least 1, got ", keep_top_k);
  return {static_cast<float>(objectness_threshold),
          static_cast<float>(score_threshold),
          static_cast<float>(iou_threshold),
          top_k,
          keep_top_k,
          to_variances(kOp, variances)};
}

std::optional<Tensor> dense_optional(const char* name, const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return dense_float(kOp, name, *tensor);
}

const float* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Results new_results(const Tensor& like, int64_t batch, int64_t keep_top_k) {
  const auto result = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(like, shape, type);
  };
  return {result({batch, keep_top_k, 4}, ScalarType::Float), result({batch, keep_top_k}, ScalarType::Float),
          result({batch, keep_top_k}, ScalarType::Long), result({batch, keep_top_k}, ScalarType::Long),
          result({batch}, ScalarType::Long)};
}

DetectOutputs pointers_to(const Results& results) {
  const auto& [boxes, scores, labels, indices, counts] = results;
  return {boxes.mutable_data_ptr<float>(), scores.mutable_data_ptr<float>(), labels.mutable_data_ptr<int64_t>(),
          indices.mutable_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>()};
}

Results detect_cpu(const std::optional<Tensor>& arm_loc, const std::optional<Tensor>& arm_conf, const Tensor& odm_loc,
                   const Tensor& odm_conf, const Tensor& anchors, double objectness_threshold, double score_threshold,
                   double iou_threshold, int64_t top_k, int64_t keep_top_k, const std::vector<double>& variances) {
  const Sizes sizes = check_sizes({arm_loc, arm_conf, odm_loc, odm_conf, anchors});
  const DetectOptions options =
      check_options(objectness_threshold, score_threshold, iou_threshold, top_k, keep_top_k, variances);
  const std::optional<Tensor> dense_arm_loc = dense_optional("arm_loc", arm_loc);
  const std::optional<Tensor> dense_arm_conf = dense_optional("arm_conf", arm_conf);
  const Tensor dense_odm_loc = dense_float(kOp, "odm_loc", odm_loc);
  const Tensor dense_odm_conf = dense_float(kOp, "odm_conf", odm_conf);
  const Tensor dense_anchors = dense_float(kOp, "anchors", anchors);
  const DetectInputs inputs{data_or_null(dense_arm_loc),
                            data_or_null(dense_arm_conf),
                            dense_odm_loc.const_data_ptr<float>(),
                            dense_odm_conf.const_data_ptr<float>(),
                            dense_anchors.const_data_ptr<float>(),
                            sizes.batch,
                            sizes.num_anchors,
                            sizes.num_classes};
  const Results results = new_results(odm_loc, sizes.batch, keep_top_k);
  cpu::detect(inputs, options, pointers_to(results));
  return results;
}

#ifdef REFINEDET_WITH_CUDA
// The tensors as the kernels read them: the outputs of the network in one type, float32 where theirs differ.
class Inputs {
 public:
  explicit Inputs(const Arguments& a) : anchors_(dense_float(kOp, "anchors", a.anchors)) {
    const ScalarType type = a.odm_conf.scalar_type();
    for (const Tensor* tensor : {cuda::pointer_to(a.arm_loc), cuda::pointer_to(a.arm_conf), &a.odm_loc})
      one_type_ = one_type_ && (tensor == nullptr || tensor->scalar_type() == type);
    level_ = {.arm_loc = read("arm_loc", cuda::pointer_to(a.arm_loc)),
              .arm_conf = read("arm_conf", cuda::pointer_to(a.arm_conf)),
              .odm_loc = read("odm_loc", &a.odm_loc),
              .odm_conf = read("odm_conf", &a.odm_conf),
              .num_anchors = a.anchors.size(0)};
  }

  cuda::DetectHeads heads() const {
    return {.type = cuda::input_type(outputs_.back()),
            .num_levels = 1,
            .levels = {level_},
            .anchors = anchors_.const_data_ptr<float>()};
  }

 private:
  const void* read(const char* name, const Tensor* tensor) {
    if (tensor == nullptr) return nullptr;
    outputs_.push_back(one_type_ ? cuda::dense_input(kOp, name, *tensor) : dense_float(kOp, name, *tensor));
    return outputs_.back().const_data_ptr();
  }

  bool one_type_ = true;
  std::vector<Tensor> outputs_;
  Tensor anchors_;
  cuda::DetectLevel level_;
};

Results detect_cuda(const std::optional<Tensor>& arm_loc, const std::optional<Tensor>& arm_conf, const Tensor& odm_loc,
                    const Tensor& odm_conf, const Tensor& anchors, double objectness_threshold, double score_threshold,
                    double iou_threshold, int64_t top_k, int64_t keep_top_k, const std::vector<double>& variances) {
  const Arguments arguments{arm_loc, arm_conf, odm_loc, odm_conf, anchors};
  cuda::check_same_device(kOp, {{"odm_loc", &odm_loc},
                                {"arm_loc", cuda::pointer_to(arm_loc)},
                                {"arm_conf", cuda::pointer_to(arm_conf)},
                                {"odm_conf", &odm_conf},
                                {"anchors", &anchors}});
  const Sizes sizes = check_sizes(arguments);
  const DetectOptions options =
      check_options(objectness_threshold, score_threshold, iou_threshold, top_k, keep_top_k, variances);
  const cuda::DetectShape shape{sizes.batch, sizes.num_anchors, sizes.num_classes};
  const std::string refusal = cuda::detect_refusal(shape, options);
  check(refusal.empty(), kOp, refusal);
  const cuda::Device device(odm_loc);
  const Inputs inputs(arguments);
  const Results results = new_results(odm_loc, sizes.batch, keep_top_k);
  const Tensor workspace = cuda::new_workspace(odm_loc, cuda::detect_workspace_bytes(shape, options));
  cuda::detect(inputs.heads(), shape, options, pointers_to(results), workspace.mutable_data_ptr(), device.stream());
  return results;
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "detect(Tensor? arm_loc, Tensor? arm_conf, Tensor odm_loc, Tensor odm_conf, Tensor anchors, "
      "float objectness_threshold, float score_threshold, float iou_threshold, int top_k, int keep_top_k, "
      "float[] variances) -> (Tensor boxes, Tensor scores, Tensor labels, Tensor indices, Tensor counts)");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CPU_KEY, m) { m.impl("detect", TORCH_BOX(&detect_cpu)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CUDA_KEY, m) { m.impl("detect", TORCH_BOX(&detect_cuda)); }
#endif

}  // namespace
}  // namespace refinedet
