#include "ops/refine.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "ops/checks.h"

namespace refinedet {

namespace {

constexpr const char* kOp = "refine";

Tensor refine_cpu(const Tensor& anchors, const Tensor& offsets, const std::vector<double>& variances) {
  check_shape(kOp, "offsets", offsets, {kAny, kAny, 4});
  const int64_t batch = offsets.size(0), num_anchors = offsets.size(1);
  const bool shared_anchors = anchors.dim() == 2;
  if (shared_anchors) {
    check_shape(kOp, "anchors", anchors, {num_anchors, 4});
  } else {
    check_shape(kOp, "anchors", anchors, {batch, num_anchors, 4});
  }
  const Tensor dense_anchors = dense_float(kOp, "anchors", anchors);
  const Tensor dense_offsets = dense_float(kOp, "offsets", offsets);
  Tensor refined = torch::stable::new_empty(dense_offsets, {batch, num_anchors, 4});
  cpu::refine(dense_anchors.const_data_ptr<float>(), shared_anchors, dense_offsets.const_data_ptr<float>(), batch,
              num_anchors, to_variances(kOp, variances), refined.mutable_data_ptr<float>());
  return refined;
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def("refine(Tensor anchors, Tensor offsets, float[] variances) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("refine", TORCH_BOX(&refine_cpu)); }

}  // namespace
}  // namespace refinedet
