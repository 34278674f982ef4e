#include "network/pooling.h"

#include <torch/csrc/stable/library.h>

#include "checks.h"

namespace refinedet {
namespace {

Tensor max_pool(const Tensor& x, int64_t side, int64_t stride, int64_t out_height, int64_t out_width) {
  constexpr const char* kOp = "max_pool";
  check_shape(kOp, "x", x, {kAny, kAny, kAny, kAny});
  check(side == 2 || side == 3, kOp, "side must be 2 or 3, got ", side);
  at_least_1(kOp, "stride", stride);
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
  const auto start_inside = [&](int64_t windows, int64_t pixels) {  // divides: a product might overflow
    return windows >= 1 && pixels >= 1 && windows - 1 <= (pixels - 1) / stride;
  };
  check(start_inside(out_height, height) && start_inside(out_width, width), kOp, "x has shape ", shape_text(x.sizes()),
        ", which has no ", out_height, " x ", out_width, " windows of stride ", stride);
  const Tensor dense_x = dense_float(kOp, "x", x);
  const Tensor y = torch::stable::new_empty(dense_x, {batch, out_height, out_width, channels}, ScalarType::Float);
  cpu::max_pool({.x = dense_x.const_data_ptr<float>(),
                 .y = y.mutable_data_ptr<float>(),
                 .batch = batch,
                 .height = height,
                 .width = width,
                 .channels = channels,
                 .out_height = out_height,
                 .out_width = out_width,
                 .stride = stride},
                side);
  return y;
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def("max_pool(Tensor x, int side, int stride, int out_height, int out_width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("max_pool", TORCH_BOX(&max_pool)); }

}  // namespace
}  // namespace refinedet
