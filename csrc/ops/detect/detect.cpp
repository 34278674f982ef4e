#include "ops/detect/detect.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <vector>

#include "kernels.h"

#ifdef REFINEDET_WITH_CUDA
#include "ops/detect/detect_cuda.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "detect";
constexpr Kernels kKernels = REFINEDET_KERNELS(detect);

// An output of the network: a tensor for each level, none when the network has no such output.
struct Output {
  const char* name;
  std::span<const Tensor> levels;

  Name level_name(size_t i) const { return levels.size() == 1 ? Name(name) : Name(name, static_cast<int>(i)); }
};

struct Arguments {
  Output arm_loc, arm_conf, odm_loc, odm_conf;
  const Tensor& anchors;

  std::array<const Output*, 4> outputs() const { return {&odm_loc, &arm_loc, &arm_conf, &odm_conf}; }
};

void check_devices(const Arguments& a) {
  if (a.odm_loc.levels.empty()) return;  // check_shapes refuses it
  const Argument first{a.odm_loc.level_name(0), &a.odm_loc.levels[0]};
  for (const Output* output : a.outputs()) {
    for (size_t i = 0; i < output->levels.size(); ++i) {
      check_same_device(kOp, {first, {output->level_name(i), &output->levels[i]}});
    }
  }
  check_same_device(kOp, {first, {"anchors", &a.anchors}});
}

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
  if (!output.levels.empty()) check_shape(kOp, output.level_name(i), output.levels[i], expected);
}

// The sizes; arrays come later.
DetectInputs check_shapes(const Arguments& a) {
  check_number_of_levels(a);
  DetectInputs in{};
  in.num_levels = static_cast<int>(a.odm_loc.levels.size());
  in.batch = in.num_classes = kAny;
  for (int i = 0; i < in.num_levels; ++i) {
    check_level(a.odm_loc, i, {in.batch, kAny, 4});
    in.batch = a.odm_loc.levels[i].size(0);
    const int64_t num_anchors = a.odm_loc.levels[i].size(1);
    check_level(a.odm_conf, i, {in.batch, num_anchors, in.num_classes});
    in.num_classes = a.odm_conf.levels[i].size(2);
    check_level(a.arm_loc, i, {in.batch, num_anchors, 4});
    check_level(a.arm_conf, i, {in.batch, num_anchors, 2});
    in.levels[i].num_anchors = num_anchors;
    in.num_anchors += num_anchors;
  }
  check_shape(kOp, "anchors", a.anchors, {in.num_anchors, 4});
  check(in.num_classes >= 1, kOp, "odm_conf must have at least one class, the background");
  return in;
}

// Do the kernels read the outputs of the network as they are? Only if all are of one half type; else as float32.
bool one_half_type(const Arguments& a) {
  const Tensor& first = a.odm_conf.levels[0];
  if (!on_gpu(first) || !is_half(first)) return false;
  const auto same_type = [&](const Tensor& tensor) { return tensor.scalar_type() == first.scalar_type(); };
  const auto outputs = a.outputs();
  return std::all_of(outputs.begin(), outputs.end(), [&](const Output* output) {
    return std::all_of(output->levels.begin(), output->levels.end(), same_type);
  });
}

// Sets the arrays. Returns what they belong to.
std::vector<Tensor> set_arrays(const Arguments& a, DetectInputs* in) {
  const bool halves = one_half_type(a);
  std::vector<Tensor> tensors;
  tensors.reserve(4 * in->num_levels + 1);
  const auto read = [&](const Output& output, size_t i) -> const void* {
    if (output.levels.empty()) return nullptr;
    const Tensor& tensor = output.levels[i];
    tensors.push_back(halves ? dense(tensor) : dense_float(kOp, output.level_name(i), tensor));
    return tensors.back().const_data_ptr();
  };
  for (int i = 0; i < in->num_levels; ++i) {
    DetectLevel& level = in->levels[i];
    level.arm_loc = read(a.arm_loc, i);
    level.arm_conf = read(a.arm_conf, i);
    level.odm_loc = read(a.odm_loc, i);
    level.odm_conf = read(a.odm_conf, i);
  }
  in->type = input_type(tensors.front());
  tensors.push_back(dense_float(kOp, "anchors", a.anchors));
  in->anchors = tensors.back().const_data_ptr<float>();
  return tensors;
}

using Results = std::array<Result, 5>;  // in the order of the schema

Results new_results(const Tensor& like, int64_t batch, int64_t rows) {
  const auto result = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return new_result(like, shape, type);
  };
  return {result({batch, rows, 4}, ScalarType::Float), result({batch, rows}, ScalarType::Float),
          result({batch, rows}, ScalarType::Long), result({batch, rows}, ScalarType::Long),
          result({batch}, ScalarType::Long)};
}

DetectOutputs pointers_to(const Results& results) {
  const auto& [boxes, scores, labels, indices, counts] = results;
  return {mutable_data<float>(boxes), mutable_data<float>(scores), mutable_data<int64_t>(labels),
          mutable_data<int64_t>(indices), mutable_data<int64_t>(counts)};
}

Results detect(const Arguments& arguments, double objectness_threshold, double score_threshold, double iou_threshold,
               int64_t top_k, int64_t keep_top_k, const std::vector<double>& variances) {
  check_devices(arguments);
  DetectInputs inputs = check_shapes(arguments);
  const DetectOptions options{.objectness_threshold = number(kOp, "objectness_threshold", objectness_threshold),
                              .score_threshold = number(kOp, "score_threshold", score_threshold),
                              .iou_threshold = at_least_0(kOp, "iou_threshold", iou_threshold),
                              .top_k = at_least_1(kOp, "top_k", top_k),
                              .keep_top_k = at_least_1(kOp, "keep_top_k", keep_top_k),
                              .variances = to_variances(kOp, variances)};
  kKernels.check_limits(arguments.anchors, inputs, options);
  const std::vector<Tensor> tensors = set_arrays(arguments, &inputs);
  Results results = new_results(arguments.anchors, inputs.batch, options.keep_top_k);
  kKernels.run(arguments.anchors, inputs, options, pointers_to(results));
  return results;
}

using InLevels = std::vector<Tensor>;
using Whole = std::optional<Tensor>;

std::span<const Tensor> levels(const InLevels& output) { return output; }
std::span<const Tensor> levels(const Whole& output) { return {pointer_to(output), output ? size_t{1} : 0}; }

// As TORCH_BOX makes it, which would copy the results.
template <class Given>
void boxed_detect(StableIValue* stack, uint64_t, uint64_t) {
  using torch::stable::detail::to;
  const auto arm_loc = to<Given>(stack[0]), arm_conf = to<Given>(stack[1]);
  const auto odm_loc = to<Given>(stack[2]), odm_conf = to<Given>(stack[3]);
  const auto anchors = to<Tensor>(stack[4]);
  const Arguments arguments{{"arm_loc", levels(arm_loc)},
                            {"arm_conf", levels(arm_conf)},
                            {"odm_loc", levels(odm_loc)},
                            {"odm_conf", levels(odm_conf)},
                            anchors};
  Results results = detect(arguments, to<double>(stack[5]), to<double>(stack[6]), to<double>(stack[7]),
                           to<int64_t>(stack[8]), to<int64_t>(stack[9]), to<std::vector<double>>(stack[10]));
  for (Result& result : results) *stack++ = torch::stable::detail::from(result.release());
}

// Every element of a list crosses the boundary of torch by itself: whole outputs, the usual case, come without lists.
STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "detect(Tensor[] arm_loc, Tensor[] arm_conf, Tensor[] odm_loc, Tensor[] odm_conf, Tensor anchors, "
      "float objectness_threshold, float score_threshold, float iou_threshold, int top_k, int keep_top_k, "
      "float[] variances) -> (Tensor boxes, Tensor scores, Tensor labels, Tensor indices, Tensor counts)");
  m.def(
      "detect.whole(Tensor? arm_loc, Tensor? arm_conf, Tensor? odm_loc, Tensor? odm_conf, Tensor anchors, "
      "float objectness_threshold, float score_threshold, float iou_threshold, int top_k, int keep_top_k, "
      "float[] variances) -> (Tensor boxes, Tensor scores, Tensor labels, Tensor indices, Tensor counts)");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) {
  m.impl("detect", &boxed_detect<InLevels>);
  m.impl("detect.whole", &boxed_detect<Whole>);
}

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, CUDA, m) {
  m.impl("detect", &boxed_detect<InLevels>);
  m.impl("detect.whole", &boxed_detect<Whole>);
}
#endif

}  // namespace
}  // namespace refinedet
