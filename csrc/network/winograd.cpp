#include "network/winograd.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "checks.h"

namespace refinedet {
namespace {

constexpr const char* kOp = "winograd";

Tensor winograd(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& other,
                const std::optional<Tensor>& beside, int64_t out_channels, bool relu) {
  check(cpu::has_winograd(), kOp, "this processor lacks AVX2 or FMA");
  check_shape(kOp, "x", x, {kAny, kAny, kAny, kAny});
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), in_channels = x.size(3);
  const int64_t panels = (out_channels + cpu::kWinogradPanel - 1) / cpu::kWinogradPanel;
  check(in_channels % cpu::kWinogradChannels == 0, kOp, "x has ", in_channels, " channels, expected a multiple of ",
        cpu::kWinogradChannels);
  check_shape(kOp, "weight", weight, {36, panels, in_channels, cpu::kWinogradPanel});
  check_shape(kOp, "bias", bias, {panels * cpu::kWinogradPanel});
  const Tensor dense_x = dense_float(kOp, "x", x), dense_weight = dense_float(kOp, "weight", weight);
  const Tensor dense_bias = dense_float(kOp, "bias", bias);
  std::optional<Tensor> dense_other, dense_beside;
  if (other) {
    check_shape(kOp, "other", *other, {batch, height, width, out_channels});
    dense_other = dense_float(kOp, "other", *other);
  }
  if (beside) {
    check_shape(kOp, "beside", *beside, {batch, height, width, kAny});
    dense_beside = dense_float(kOp, "beside", *beside);
  }
  const int64_t beside_channels = beside ? beside->size(3) : 0;
  const Tensor y =
      torch::stable::new_empty(dense_x, {batch, height, width, beside_channels + out_channels}, ScalarType::Float);
  cpu::winograd({.x = dense_x.const_data_ptr<float>(),
                 .weight = dense_weight.const_data_ptr<float>(),
                 .bias = dense_bias.const_data_ptr<float>(),
                 .other = dense_other ? dense_other->const_data_ptr<float>() : nullptr,
                 .beside = dense_beside ? dense_beside->const_data_ptr<float>() : nullptr,
                 .y = y.mutable_data_ptr<float>(),
                 .batch = batch,
                 .height = height,
                 .width = width,
                 .in_channels = in_channels,
                 .out_channels = out_channels,
                 .beside_channels = beside_channels,
                 .relu = relu});
  return y;
}

bool has_winograd() { return cpu::has_winograd(); }

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "winograd(Tensor x, Tensor weight, Tensor bias, Tensor? other, Tensor? beside, int out_channels, bool relu) -> "
      "Tensor");
  m.def("has_winograd() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) { m.impl("winograd", TORCH_BOX(&winograd)); }

STABLE_TORCH_LIBRARY_IMPL(refinedet, CompositeExplicitAutograd, m) { m.impl("has_winograd", TORCH_BOX(&has_winograd)); }

}  // namespace
}  // namespace refinedet
