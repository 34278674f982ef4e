#include "cuda/bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "kernel_resources.h"
#include "ops/detect/detect_cuda.h"
#include "ops/match/match_cuda.h"
#include "ops/mine/mine_cuda.h"
#include "ops/nms/nms_cuda.h"
#include "ops/refine/refine_cuda.h"

namespace py = pybind11;

namespace refinedet::cuda {
namespace {

using Address = std::uintptr_t;  // of device memory; 0 = none
using FourNumbers = std::array<float, 4>;
using Level = std::tuple<Address, Address, Address, Address, int64_t>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

InputType input_type(const std::string& name) {
  if (name == "float32") return InputType::kFloat32;
  if (name == "float16") return InputType::kFloat16;
  if (name == "bfloat16") return InputType::kBFloat16;
  throw py::value_error("type is '" + name + "', expected float32, float16 or bfloat16");
}

Variances to_variances(const FourNumbers& v) { return {v[0], v[1], v[2], v[3]}; }

void check_accepted(const std::string& refusal) {
  if (!refusal.empty()) throw py::value_error(refusal);
}

void bind_refine(py::module_& launchers) {
  launchers.def(
      "refine",
      [](const std::string& type, Address anchors, bool shared_anchors, Address offsets, int64_t batch,
         int64_t num_anchors, const FourNumbers& variances, Address refined, Address stream) {
        const RefineInputs inputs{input_type(type), at<float>(anchors), shared_anchors, at<void>(offsets),
                                  batch,            num_anchors};
        refine(inputs, to_variances(variances), at<float>(refined), reinterpret_cast<Stream>(stream));
      },
      py::kw_only(), py::arg("type"), py::arg("anchors"), py::arg("shared_anchors"), py::arg("offsets"),
      py::arg("batch"), py::arg("num_anchors"), py::arg("variances"), py::arg("refined"), py::arg("stream"));
}

void bind_nms(py::module_& launchers) {
  launchers.def("nms_workspace_bytes", &nms_workspace_bytes, py::arg("num_boxes"));
  launchers.def(
      "nms",
      [](const std::string& type, Address boxes, Address scores, Address labels, Address order, int64_t num_boxes,
         float iou_threshold, Address kept, Address count, Address workspace, Address stream) {
        const NmsInputs inputs{input_type(type), at<void>(boxes),    at<float>(scores), at<int64_t>(labels),
                               at<int64_t>(order), num_boxes};
        nms(inputs, iou_threshold, {at<int64_t>(kept), at<int64_t>(count)}, at<void>(workspace),
            reinterpret_cast<Stream>(stream));
      },
      py::kw_only(), py::arg("type"), py::arg("boxes"), py::arg("scores"), py::arg("labels"), py::arg("order"),
      py::arg("num_boxes"), py::arg("iou_threshold"), py::arg("kept"), py::arg("count"), py::arg("workspace"),
      py::arg("stream"));
}

DetectHeads to_heads(const std::string& type, const std::vector<Level>& levels, Address anchors) {
  if (levels.empty() || levels.size() > kMaxLevels)
    throw py::value_error("levels has " + std::to_string(levels.size()) + " items, expected 1 to " +
                          std::to_string(kMaxLevels));
  DetectHeads heads{};
  heads.type = input_type(type);
  heads.anchors = at<float>(anchors);
  for (const auto& [arm_loc, arm_conf, odm_loc, odm_conf, num_anchors] : levels)
    heads.levels[heads.num_levels++] = {at<void>(arm_loc), at<void>(arm_conf), at<void>(odm_loc), at<void>(odm_conf),
                                        num_anchors};
  return heads;
}

void bind_detect(py::module_& launchers) {
  launchers.def(
      "detect_workspace_bytes",
      [](int64_t batch, int64_t num_anchors, int64_t num_classes, int64_t top_k, int64_t keep_top_k) {
        const DetectShape shape{batch, num_anchors, num_classes};
        const DetectOptions options{0, 0, 0, top_k, keep_top_k, {}};
        check_accepted(detect_refusal(shape, options));
        return detect_workspace_bytes(shape, options);
      },
      py::kw_only(), py::arg("batch"), py::arg("num_anchors"), py::arg("num_classes"), py::arg("top_k"),
      py::arg("keep_top_k"));
  launchers.def(
      "detect",
      [](const std::string& type, const std::vector<Level>& levels, Address anchors, int64_t batch,
         int64_t num_classes, float objectness_threshold, float score_threshold, float iou_threshold, int64_t top_k,
         int64_t keep_top_k, const FourNumbers& variances, Address boxes, Address scores, Address labels,
         Address indices, Address counts, Address workspace, Address stream) {
        const DetectHeads heads = to_heads(type, levels, anchors);
        DetectShape shape{batch, 0, num_classes};
        for (int i = 0; i < heads.num_levels; ++i) shape.num_anchors += heads.levels[i].num_anchors;
        const DetectOptions options{objectness_threshold, score_threshold, iou_threshold,
                                    top_k,                keep_top_k,      to_variances(variances)};
        check_accepted(detect_refusal(shape, options));
        const DetectOutputs outputs{at<float>(boxes), at<float>(scores), at<int64_t>(labels), at<int64_t>(indices),
                                    at<int64_t>(counts)};
        detect(heads, shape, options, outputs, at<void>(workspace), reinterpret_cast<Stream>(stream));
      },
      "Levels are tuples (arm_loc, arm_conf, odm_loc, odm_conf, number of anchors): one of concatenated tensors "
      "[B,N,*], or four of head maps in NHWC order.",
      py::kw_only(), py::arg("type"), py::arg("levels"), py::arg("anchors"), py::arg("batch"), py::arg("num_classes"),
      py::arg("objectness_threshold"), py::arg("score_threshold"), py::arg("iou_threshold"), py::arg("top_k"),
      py::arg("keep_top_k"), py::arg("variances"), py::arg("boxes"), py::arg("scores"), py::arg("labels"),
      py::arg("indices"), py::arg("counts"), py::arg("workspace"), py::arg("stream"));
}

void bind_match(py::module_& launchers) {
  launchers.def(
      "match_workspace_bytes",
      [](int64_t batch, int64_t num_anchors, int64_t num_truths) {
        MatchInput in{};
        in.batch = batch;
        in.num_anchors = num_anchors;
        check_accepted(match_refusal(in, num_truths));
        return match_workspace_bytes(in, num_truths);
      },
      py::kw_only(), py::arg("batch"), py::arg("num_anchors"), py::arg("num_truths"));
  launchers.def(
      "match",
      [](Address anchors, bool shared_anchors, Address gt_boxes, Address gt_labels, Address gt_offsets, int64_t batch,
         int64_t num_anchors, int64_t num_truths, float iou_threshold, const FourNumbers& variances, Address labels,
         Address targets, Address indices, Address ious, Address workspace, Address stream) {
        const MatchInput in{at<float>(anchors),
                            shared_anchors,
                            at<float>(gt_boxes),
                            at<int64_t>(gt_labels),
                            at<int64_t>(gt_offsets),
                            batch,
                            num_anchors,
                            iou_threshold,
                            to_variances(variances)};
        check_accepted(match_refusal(in, num_truths));
        const MatchOutput out{at<int64_t>(labels), at<float>(targets), at<int64_t>(indices), at<float>(ious)};
        match(in, num_truths, out, at<void>(workspace), reinterpret_cast<Stream>(stream));
      },
      py::kw_only(), py::arg("anchors"), py::arg("shared_anchors"), py::arg("gt_boxes"), py::arg("gt_labels"),
      py::arg("gt_offsets"), py::arg("batch"), py::arg("num_anchors"), py::arg("num_truths"), py::arg("iou_threshold"),
      py::arg("variances"), py::arg("labels"), py::arg("targets"), py::arg("indices"), py::arg("ious"),
      py::arg("workspace"), py::arg("stream"));
}

void bind_mine(py::module_& launchers) {
  launchers.def(
      "mine_workspace_bytes",
      [](int64_t batch, int64_t num_anchors) {
        MineInput in{};
        in.batch = batch;
        in.num_anchors = num_anchors;
        check_accepted(mine_refusal(in));
        return mine_workspace_bytes(in);
      },
      py::kw_only(), py::arg("batch"), py::arg("num_anchors"));
  launchers.def(
      "mine",
      [](const std::string& type, Address losses, int64_t num_classes, Address labels, Address ious, Address objectness,
         int64_t batch, int64_t num_anchors, float negative_iou, double negative_ratio, float objectness_threshold,
         Address mask, Address workspace, Address stream) {
        const MineInput in{input_type(type),    at<void>(losses), num_classes, at<int64_t>(labels),
                           at<float>(ious),     at<float>(objectness), batch,  num_anchors,
                           negative_iou,        objectness_threshold,  negative_ratio};
        check_accepted(mine_refusal(in));
        mine(in, at<bool>(mask), at<void>(workspace), reinterpret_cast<Stream>(stream));
      },
      "num_classes 0: losses [B,N], else logits [B,N,C].", py::kw_only(), py::arg("type"), py::arg("losses"),
      py::arg("num_classes"), py::arg("labels"), py::arg("ious"), py::arg("objectness"), py::arg("batch"),
      py::arg("num_anchors"), py::arg("negative_iou"), py::arg("negative_ratio"), py::arg("objectness_threshold"),
      py::arg("mask"), py::arg("workspace"), py::arg("stream"));
}

// 13000 for CUDA 13.0; 0 without a driver.
int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "version of the driver");
  return version;
}

}  // namespace

void bind(py::module_& module) {
  module.def("kernel_resources", [] { return kKernelResources; },
             "JSON list: registers, spills, memory and threads of every kernel on every architecture.");
  module.def("driver_version", &driver_version,
             "Newest CUDA that the driver of this machine supports: 13000 is CUDA 13.0, 0 no driver.");
  py::module_ launchers = module.def_submodule(
      "launchers",
      "The kernels without torch in between: addresses of device memory as integers (0 = none), sizes, the address of "
      "a stream (0 = the default stream). Contracts: csrc/ops/<op>/<op>.h and <op>_cuda.h. Only sizes are checked.");
  bind_refine(launchers);
  bind_nms(launchers);
  bind_detect(launchers);
  bind_match(launchers);
  bind_mine(launchers);
}

}  // namespace refinedet::cuda
