#include "driver.h"
#include "ops/refine/refine_cuda.h"

using refinedet::cuda::InputType;

namespace {

void refine(cuda_on_cpu::Request& request) {
  const auto variance = [&](const char* name) { return static_cast<float>(request.real(name)); };
  const refinedet::cuda::RefineInputs inputs{static_cast<InputType>(request.integer("type")),
                                             request.input<float>("anchors"),
                                             request.integer("shared_anchors") != 0,
                                             request.input<void>("offsets"),
                                             request.integer("batch"),
                                             request.integer("num_anchors")};
  const refinedet::Variances variances{variance("variance_x"), variance("variance_y"), variance("variance_w"),
                                       variance("variance_h")};
  refinedet::cuda::refine(inputs, variances, request.output<float>("refined"), nullptr);
}

}  // namespace

const cuda_on_cpu::Launchers cuda_on_cpu::launchers = {{"refine", refine}};
