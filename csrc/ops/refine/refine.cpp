#include "ops/refine/refine.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "checks.h"

#ifdef REFINEDET_WITH_CUDA
#include "cuda/arguments.h"
#include "cuda/device.h"
#include "ops/refine/refine_cuda.h"
#endif

namespace refinedet {

namespace {

constexpr const char* kOp = "refine";

struct Sizes {
  int64_t batch, num_anchors;
  bool shared_anchors;
};

Sizes check_sizes(const Tensor& anchors, const Tensor& offsets) {
  check_shape(kOp, "offsets", offsets, {kAny, kAny, 4});
  const int64_t batch = offsets.size(0), num_anchors = offsets.size(1);
  const bool shared_anchors = anchors.dim() == 2;
  if (shared_anchors) {
    check_shape(kOp, "anchors", anchors, {num_anchors, 4});
  } else {
    check_shape(kOp, "anchors", anchors, {batch, num_anchors, 4});
  }
  return {batch, num_anchors, shared_anchors};
}

Tensor new_result(const Tensor& offsets, const Sizes& sizes) {
  return torch::stable::new_empty(offsets, {sizes.batch, sizes.num_anchors, 4}, ScalarType::Float);
}

Tensor refine_cpu(const Tensor& anchors, const Tensor& offsets, const std::vector<double>& variances) {
  const Sizes sizes = check_sizes(anchors, offsets);
  const Tensor dense_anchors = dense_float(kOp, "anchors", anchors);
  const Tensor dense_offsets = dense_float(kOp, "offsets", offsets);
  const Tensor refined = new_result(dense_offsets, sizes);
  cpu::refine(dense_anchors.const_data_ptr<float>(), sizes.shared_anchors, dense_offsets.const_data_ptr<float>(),
              sizes.batch, sizes.num_anchors, to_variances(kOp, variances), refined.mutable_data_ptr<float>());
  return refined;
}

#ifdef REFINEDET_WITH_CUDA
Tensor refine_cuda(const Tensor& anchors, const Tensor& offsets, const std::vector<double>& variances) {
  cuda::check_same_device(kOp, {{"offsets", &offsets}, {"anchors", &anchors}});
  const Sizes sizes = check_sizes(anchors, offsets);
  const cuda::Device device(offsets);
  const Tensor dense_anchors = dense_float(kOp, "anchors", anchors);
  const Tensor dense_offsets = cuda::dense_input(kOp, "offsets", offsets);
  const Tensor refined = new_result(dense_offsets, sizes);
  const cuda::RefineInputs inputs{.type = cuda::input_type(dense_offsets),
                                  .anchors = dense_anchors.const_data_ptr<float>(),
                                  .shared_anchors = sizes.shared_anchors,
                                  .offsets = dense_offsets.const_data_ptr(),
                                  .batch = sizes.batch,
                                  .num_anchors = sizes.num_anchors};
  cuda::refine(inputs, to_variances(kOp, variances), refined.mutable_data_ptr<float>(), device.stream());
  return refined;
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def("refine(Tensor anchors, Tensor offsets, float[] variances) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CPU_KEY, m) { m.impl("refine", TORCH_BOX(&refine_cpu)); }

#ifdef REFINEDET_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(refinedet, REFINEDET_CUDA_KEY, m) { m.impl("refine", TORCH_BOX(&refine_cuda)); }
#endif

}  // namespace
}  // namespace refinedet
