#include "driver.h"
#include "ops/mine/mine_cuda.h"

namespace {

void mine(cuda_on_cpu::Request& request) {
  const refinedet::cuda::MineInput in{
      static_cast<refinedet::cuda::InputType>(request.integer("type")),
      request.input<void>("losses"),
      request.integer("num_classes"),
      request.input<int64_t>("labels"),
      request.input<float>("ious"),
      request.optional_input<float>("objectness"),
      request.integer("batch"),
      request.integer("num_anchors"),
      static_cast<float>(request.real("negative_iou")),
      static_cast<float>(request.real("objectness_threshold")),
      request.real("negative_ratio"),
  };
  refinedet::cuda::mine(in, request.output<bool>("mask"), request.workspace(refinedet::cuda::mine_workspace_bytes(in)),
                        nullptr);
}

// Throws why the kernels cannot take a request of these sizes.
void refuse(cuda_on_cpu::Request& request) {
  refinedet::cuda::MineInput in{};
  in.batch = request.integer("batch");
  in.num_anchors = request.integer("num_anchors");
  in.num_classes = request.integer("num_classes");
  const std::string reason = refinedet::cuda::mine_refusal(in);
  if (!reason.empty()) throw std::runtime_error(reason);
}

}  // namespace

const cuda_on_cpu::Launchers cuda_on_cpu::launchers = {{"mine", mine}, {"refuse", refuse}};
