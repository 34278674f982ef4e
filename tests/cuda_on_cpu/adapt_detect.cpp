#include <stdexcept>

#include "driver.h"
#include "ops/cuda/detect.h"

using refinedet::cuda::InputType;

namespace {

// Level i of the heads is given as arm_loc<i>, arm_conf<i>, odm_loc<i>, odm_conf<i>, each [B,n,*].
void detect(cuda_on_cpu::Request& request) {
  const std::vector<int64_t> conf_shape = request.shape("odm_conf0");
  refinedet::cuda::DetectHeads heads{};
  heads.type = static_cast<InputType>(request.integer("type"));
  heads.num_levels = static_cast<int>(request.integer("num_levels"));
  for (int i = 0; i < heads.num_levels; ++i) {
    const std::string level = std::to_string(i);
    heads.levels[i] = {request.optional_input<void>("arm_loc" + level), request.optional_input<void>("arm_conf" + level),
                       request.input<void>("odm_loc" + level), request.input<void>("odm_conf" + level),
                       request.shape("odm_loc" + level)[1]};
  }
  heads.anchors = request.input<float>("anchors");
  const auto real = [&](const char* name) { return static_cast<float>(request.real(name)); };
  const refinedet::DetectOptions options{
      real("objectness_threshold"), real("score_threshold"), real("iou_threshold"), request.integer("top_k"),
      request.integer("keep_top_k"),
      {real("variance_x"), real("variance_y"), real("variance_w"), real("variance_h")}};
  const refinedet::cuda::DetectShape shape{conf_shape[0], request.shape("anchors")[0], conf_shape[2]};
  const refinedet::DetectOutputs outputs{request.output<float>("boxes"), request.output<float>("scores"),
                                         request.output<int64_t>("labels"), request.output<int64_t>("indices"),
                                         request.output<int64_t>("counts")};
  const std::string refusal = refinedet::cuda::detect_refusal(shape, options);
  if (!refusal.empty()) throw std::invalid_argument(refusal);
  refinedet::cuda::detect(heads, shape, options, outputs,
                          request.workspace(refinedet::cuda::detect_workspace_bytes(shape, options)), nullptr);
}

}  // namespace

const cuda_on_cpu::Launchers cuda_on_cpu::launchers = {{"detect", detect}};
