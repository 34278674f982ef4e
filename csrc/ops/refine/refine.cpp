#include "ops/refine/refine.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "kernels.h"

#ifdef REFINEDET_WITH_CUDA
#include "ops/refine/refine_cuda.h"
#endif

namespace refinedet {
namespace {

constexpr const char* kOp = "refine";
constexpr Kernels kKernels = REFINEDET_KERNELS(refine);

// The sizes; arrays come later.
RefineInputs check_shapes(const Tensor& anchors, const Tensor& offsets) {
  check_shape(kOp, "offsets", offsets, {kAny, kAny, 4});
  RefineInputs inputs{};
  inputs.batch = offsets.size(0);
  inputs.num_anchors = offsets.size(1);
  inputs.shared_anchors = anchors.dim() == 2;
  if (inputs.shared_anchors) {
    check_shape(kOp, "anchors", anchors, {inputs.num_anchors, 4});
  } else {
    check_shape(kOp, "anchors", anchors, {inputs.batch, inputs.num_anchors, 4});
  }
  return inputs;
}

Tensor refine(const Tensor& anchors, const Tensor& offsets, const std::vector<double>& variances) {
  check_same_device(kOp, {{"offsets", &offsets}, {"anchors", &anchors}});
  RefineInputs inputs = check_shapes(anchors, offsets);
  const RefineOptions options{.variances = to_variances(kOp, variances)};
  kKernels.check_limits(offsets, inputs, options);
  const Tensor dense_anchors = dense_float(kOp, "anchors", anchors);
  const Tensor dense_offsets = dense_input(kOp, "offsets", offsets);
  inputs.type = input_type(dense_offsets);
  inputs.anchors = dense_anchors.const_data_ptr<float>();
  inputs.offsets = dense_offsets.const_data_ptr();
  const Tensor refined = new_tensor(dense_offsets, {inputs.batch, inputs.num_anchors, 4}, ScalarType::Float);
  kKernels.run(offsets, inputs, options, {.refined = refined.mutable_data_ptr<float>()});
  return refined;
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def("refine(Tensor anchors, Tensor offsets, float[] variances) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("refine", TORCH_BOX(&refine)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, CUDA, m) { m.impl("refine", TORCH_BOX(&refine)); }
#endif

}  // namespace
}  // namespace refinedet
