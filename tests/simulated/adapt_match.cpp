#include "driver.h"
#include "ops/match/match_cuda.h"

namespace {

void match(cuda_on_cpu::Request& request) {
  const int64_t num_truths = request.integer("num_truths");
  const auto real = [&](const char* name) { return static_cast<float>(request.real(name)); };
  const refinedet::cuda::MatchInput in{
      request.input<float>("anchors"),
      request.integer("shared_anchors") != 0,
      request.input<float>("gt_boxes"),
      request.input<int64_t>("gt_labels"),
      request.input<int64_t>("gt_offsets"),
      request.integer("batch"),
      request.integer("num_anchors"),
      real("iou_threshold"),
      {real("variance_x"), real("variance_y"), real("variance_w"), real("variance_h")},
  };
  refinedet::cuda::match(in, num_truths,
                         {request.output<int64_t>("labels"), request.output<float>("targets"),
                          request.output<int64_t>("indices"), request.output<float>("ious")},
                         request.workspace(refinedet::cuda::match_workspace_bytes(in, num_truths)), nullptr);
}

// Throws why the kernels cannot take a request of these sizes.
void refuse(cuda_on_cpu::Request& request) {
  refinedet::cuda::MatchInput in{};
  in.batch = request.integer("batch");
  in.num_anchors = request.integer("num_anchors");
  const std::string reason = refinedet::cuda::match_refusal(in, request.integer("num_truths"));
  if (!reason.empty()) throw std::runtime_error(reason);
}

}  // namespace

const cuda_on_cpu::Launchers cuda_on_cpu::launchers = {{"match", match}, {"refuse", refuse}};
