#include "driver.h"
#include "ops/nms/nms_cuda.h"

using refinedet::cuda::InputType;

namespace {

void nms(cuda_on_cpu::Request& request) {
  const int64_t num_boxes = request.integer("num_boxes");
  const refinedet::cuda::NmsInputs inputs{static_cast<InputType>(request.integer("type")),
                                          request.input<void>("boxes"),
                                          request.input<float>("scores"),
                                          request.optional_input<int64_t>("labels"),
                                          request.input<int64_t>("order"),
                                          num_boxes};
  const refinedet::cuda::NmsOutputs outputs{request.output<int64_t>("kept"), request.output<int64_t>("count")};
  refinedet::cuda::nms(inputs, static_cast<float>(request.real("iou_threshold")), outputs,
                       request.workspace(refinedet::cuda::nms_workspace_bytes(num_boxes)), nullptr);
}

}  // namespace

const cuda_on_cpu::Launchers cuda_on_cpu::launchers = {{"nms", nms}};
