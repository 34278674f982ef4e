#include "ops/detect/detect.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"

#ifdef REFINEDET_WITH_CUDA
#include "cuda/arguments.h"
#include "cuda/device.h"
#include "ops/detect/detect_cuda.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "detect";
constexpr int64_t kMaxScores = int64_t{1} << 32;  // (anchor, class) is half of a 64-bit sort key

using Levels = std::vector<Tensor>;

// An output of the network: a tensor for each level, none when the network has no such output.
struct Output {
  const char* name;
  const Levels& levels;

  // For messages: the argument, with the number of the level where there are several.
  std::string level_name(size_t i) const {
    return levels.size() == 1 ? name : std::string(name) + '[' + std::to_string(i) + ']';
  }
};

struct Arguments {
  Output arm_loc, arm_conf, odm_loc, odm_conf;
  const Tensor& anchors;

  std::array<const Output*, 4> outputs() const { return {&odm_loc, &arm_loc, &arm_conf, &odm_conf}; }
};

void check_number_of_levels(const Arguments& a) {
  const size_t count = a.odm_loc.levels.size();
  check(count >= 1 && count <= kMaxLevels, kOp, "odm_loc has ", count, " levels, expected 1 to ", kMaxLevels);
  const auto check_same = [&](const Output& output) {
    const size_t given = output.levels.size();
    check(given == count, kOp, "the number of levels differs: ", output.name, " has ", given, ", odm_loc ", count);
  };
  check_same(a.odm_conf);
  for (const Output* optional : {&a.arm_loc, &a.arm_conf}) {
    if (!optional->levels.empty()) check_same(*optional);
  }
}

void check_level(const Output& output, size_t i, std::initializer_list<int64_t> expected) {
  if (!output.levels.empty()) check_shape(kOp, output.level_name(i).c_str(), output.levels[i], expected);
}

DetectShape check_shapes(const Arguments& a) {
  check_number_of_levels(a);
  DetectShape shape{kAny, 0, kAny};
  for (size_t i = 0; i < a.odm_loc.levels.size(); ++i) {
    check_level(a.odm_loc, i, {shape.batch, kAny, 4});
    shape.batch = a.odm_loc.levels[i].size(0);
    const int64_t num_anchors = a.odm_loc.levels[i].size(1);
    check_level(a.odm_conf, i, {shape.batch, num_anchors, shape.num_classes});
    shape.num_classes = a.odm_conf.levels[i].size(2);
    check_level(a.arm_loc, i, {shape.batch, num_anchors, 4});
    check_level(a.arm_conf, i, {shape.batch, num_anchors, 2});
    shape.num_anchors += num_anchors;
  }
  check_shape(kOp, "anchors", a.anchors, {shape.num_anchors, 4});
  check(shape.num_classes >= 1, kOp, "odm_conf must have at least one class, the background");
  check(shape.num_anchors < kMaxScores / shape.num_classes, kOp, "odm_conf has ", shape.num_anchors, " anchors of ",
        shape.num_classes, " classes, expected fewer than 2^32 scores per image");
  return shape;
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

// The arguments as a kernel reads them.
template <class T>
struct DenseInputs {
  std::vector<Tensor> tensors;  // what `pointers` point to; last the anchors
  DetectInputs<T> pointers;
};

// `dense(name, tensor)` gives an output of the network, contiguous, in a type that the kernel reads.
template <class T, class Dense>
DenseInputs<T> dense_inputs(const Arguments& a, Dense dense) {
  DenseInputs<T> inputs{};
  const auto read = [&](const Output& output, size_t i) -> const T* {
    if (output.levels.empty()) return nullptr;
    inputs.tensors.push_back(dense(output.level_name(i).c_str(), output.levels[i]));
    return static_cast<const T*>(inputs.tensors.back().const_data_ptr());
  };
  for (size_t i = 0; i < a.odm_loc.levels.size(); ++i) {
    inputs.pointers.levels[inputs.pointers.num_levels++] = {read(a.arm_loc, i), read(a.arm_conf, i),
                                                            read(a.odm_loc, i), read(a.odm_conf, i),
                                                            a.odm_loc.levels[i].size(1)};
  }
  const Tensor anchors = dense_float(kOp, "anchors", a.anchors);
  inputs.pointers.anchors = anchors.const_data_ptr<float>();
  inputs.tensors.push_back(anchors);
  return inputs;
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

Results detect_cpu(const Levels& arm_loc, const Levels& arm_conf, const Levels& odm_loc, const Levels& odm_conf,
                   const Tensor& anchors, double objectness_threshold, double score_threshold, double iou_threshold,
                   int64_t top_k, int64_t keep_top_k, const std::vector<double>& variances) {
  const Arguments arguments{
      {"arm_loc", arm_loc}, {"arm_conf", arm_conf}, {"odm_loc", odm_loc}, {"odm_conf", odm_conf}, anchors};
  const DetectShape shape = check_shapes(arguments);
  const DetectOptions options =
      check_options(objectness_threshold, score_threshold, iou_threshold, top_k, keep_top_k, variances);
  const auto dense = [](const char* name, const Tensor& tensor) { return dense_float(kOp, name, tensor); };
  const DenseInputs<float> inputs = dense_inputs<float>(arguments, dense);
  const Results results = new_results(anchors, shape.batch, keep_top_k);
  cpu::detect(inputs.pointers, shape, options, pointers_to(results));
  return results;
}

#ifdef REFINEDET_WITH_CUDA
void check_same_device(const Arguments& a) {
  const std::string first_name = a.odm_loc.level_name(0);
  const cuda::Argument first{first_name.c_str(), &a.odm_loc.levels[0]};
  for (const Output* output : a.outputs()) {
    for (size_t i = 0; i < output->levels.size(); ++i) {
      cuda::check_same_device(kOp, {first, {output->level_name(i).c_str(), &output->levels[i]}});
    }
  }
  cuda::check_same_device(kOp, {first, {"anchors", &a.anchors}});
}

// The outputs of the network in one type, float32 where theirs differ.
DenseInputs<void> dense_cuda_inputs(const Arguments& a) {
  const ScalarType type = a.odm_conf.levels[0].scalar_type();
  bool one_type = true;
  for (const Output* output : a.outputs()) {
    for (const Tensor& tensor : output->levels) one_type = one_type && tensor.scalar_type() == type;
  }
  return dense_inputs<void>(a, [=](const char* name, const Tensor& tensor) {
    return one_type ? cuda::dense_input(kOp, name, tensor) : dense_float(kOp, name, tensor);
  });
}

Results detect_cuda(const Levels& arm_loc, const Levels& arm_conf, const Levels& odm_loc, const Levels& odm_conf,
                    const Tensor& anchors, double objectness_threshold, double score_threshold, double iou_threshold,
                    int64_t top_k, int64_t keep_top_k, const std::vector<double>& variances) {
  const Arguments arguments{
      {"arm_loc", arm_loc}, {"arm_conf", arm_conf}, {"odm_loc", odm_loc}, {"odm_conf", odm_conf}, anchors};
  const DetectShape shape = check_shapes(arguments);
  check_same_device(arguments);
  const DetectOptions options =
      check_options(objectness_threshold, score_threshold, iou_threshold, top_k, keep_top_k, variances);
  const std::string refusal = cuda::detect_refusal(shape, options);
  check(refusal.empty(), kOp, refusal);
  const cuda::Device device(anchors);
  const DenseInputs<void> inputs = dense_cuda_inputs(arguments);
  const Results results = new_results(anchors, shape.batch, keep_top_k);
  const Tensor workspace = cuda::new_workspace(anchors, cuda::detect_workspace_bytes(shape, options));
  cuda::detect({inputs.pointers, cuda::input_type(inputs.tensors.front())}, shape, options, pointers_to(results),
               workspace.mutable_data_ptr(), device.stream());
  return results;
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "detect(Tensor[] arm_loc, Tensor[] arm_conf, Tensor[] odm_loc, Tensor[] odm_conf, Tensor anchors, "
      "float objectness_threshold, float score_threshold, float iou_threshold, int top_k, int keep_top_k, "
      "float[] variances) -> (Tensor boxes, Tensor scores, Tensor labels, Tensor indices, Tensor counts)");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CPU_KEY, m) { m.impl("detect", TORCH_BOX(&detect_cpu)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CUDA_KEY, m) { m.impl("detect", TORCH_BOX(&detect_cuda)); }
#endif

}  // namespace
}  // namespace refinedet
