#include "driver.h"
#include "ops/mine/mine_cuda.h"

namespace {

void mine(cuda_on_cpu::Request& request) {
  const std::vector<int64_t>&losses = request.shape("losses"), &shape = request.shape("labels");
  const refinedet::cuda::MineInput in{
      static_cast<refinedet::cuda::InputType>(request.integer("type")),
      request.input<void>("losses"),
      losses.size() == 3 ? losses[2] : 0,
      request.input<int64_t>("labels"),
      request.input<float>("ious"),
      request.optional_input<float>("objectness"),
      shape[0],
      shape[1],
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
