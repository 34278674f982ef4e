#include <stdexcept>

#include "driver.h"
#include "ops/detect/detect_cuda.h"

using refinedet::cuda::InputType;

namespace {

using refinedet::DetectOptions;
using refinedet::DetectShape;

// As the registration does.
void check(const DetectShape& shape, const DetectOptions& options) {
  const std::string refusal = refinedet::cuda::detect_refusal(shape, options);
  if (!refusal.empty()) throw std::invalid_argument(refusal);
}

// Level i of the heads is given as arm_loc<i>, arm_conf<i>, odm_loc<i>, odm_conf<i>, each [B,n,*].
void detect(cuda_on_cpu::Request& request) {
  refinedet::cuda::DetectHeads heads{};
  heads.type = static_cast<InputType>(request.integer("type"));
  heads.num_levels = static_cast<int>(request.integer("num_levels"));
  for (int i = 0; i < heads.num_levels; ++i) {
    const std::string level = std::to_string(i);
    heads.levels[i] = {request.optional_input<void>("arm_loc" + level),
                       request.optional_input<void>("arm_conf" + level),
                       request.input<void>("odm_loc" + level),
                       request.input<void>("odm_conf" + level),
                       request.integer("num_anchors" + level)};
  }
  heads.anchors = request.input<float>("anchors");
  const auto real = [&](const char* name) { return static_cast<float>(request.real(name)); };
  const DetectOptions options{
      real("objectness_threshold"), real("score_threshold"), real("iou_threshold"), request.integer("top_k"),
      request.integer("keep_top_k"),
      {real("variance_x"), real("variance_y"), real("variance_w"), real("variance_h")}};
  const DetectShape shape{request.integer("batch"), request.integer("num_anchors"), request.integer("num_classes")};
  const refinedet::DetectOutputs outputs{request.output<float>("boxes"), request.output<float>("scores"),
                                         request.output<int64_t>("labels"), request.output<int64_t>("indices"),
                                         request.output<int64_t>("counts")};
  check(shape, options);
  refinedet::cuda::detect(heads, shape, options, outputs,
                          request.workspace(refinedet::cuda::detect_workspace_bytes(shape, options)), nullptr);
}

// Only whether the sizes are taken: no tensors of 300,000 anchors and 600 classes. Gives the bytes of the workspace.
void size(cuda_on_cpu::Request& request) {
  const DetectShape shape{request.integer("batch"), request.integer("num_anchors"), request.integer("num_classes")};
  const DetectOptions options{0, 0, 0, request.integer("top_k"), request.integer("keep_top_k"), {}};
  check(shape, options);
  *request.output<int64_t>("workspace_bytes") = refinedet::cuda::detect_workspace_bytes(shape, options);
}

}  // namespace

const cuda_on_cpu::Launchers cuda_on_cpu::launchers = {{"detect", detect}, {"size", size}};
