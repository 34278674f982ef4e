#include <torch/csrc/stable/library.h>

#include <optional>

#include "checks.h"
#include "network/panels.h"
#include "network/pointwise.h"
#include "network/winograd.h"

namespace refinedet {
namespace {

void check_processor(const char* op) { check(cpu::has_convolutions(), op, "this processor lacks AVX2 or FMA"); }

std::optional<Tensor> dense_map(const char* op, const char* name, const std::optional<Tensor>& map,
                                std::initializer_list<int64_t> shape) {
  if (!map) return std::nullopt;
  check_shape(op, name, *map, shape);
  return dense_float(op, name, *map);
}

const float* data_of(const std::optional<Tensor>& map) { return map ? map->const_data_ptr<float>() : nullptr; }

Tensor winograd(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& other,
                const std::optional<Tensor>& beside, int64_t out_channels, bool relu) {
  constexpr const char* kOp = "winograd";
  check_processor(kOp);
  at_least_1(kOp, "out_channels", out_channels);
  check_shape(kOp, "x", x, {kAny, kAny, kAny, kAny});
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), in_channels = x.size(3);
  const int64_t panels = cpu::panels(out_channels);
  check(in_channels % cpu::kWinogradChannels == 0, kOp, "x has ", in_channels, " channels, expected a multiple of ",
        cpu::kWinogradChannels);
  check_shape(kOp, "weight", weight, {36, panels, in_channels, cpu::kPanel});
  check_shape(kOp, "bias", bias, {panels * cpu::kPanel});
  const Tensor dense_x = dense_float(kOp, "x", x), dense_weight = dense_float(kOp, "weight", weight);
  const Tensor dense_bias = dense_float(kOp, "bias", bias);
  const std::optional<Tensor> dense_other = dense_map(kOp, "other", other, {batch, height, width, out_channels});
  const std::optional<Tensor> dense_beside = dense_map(kOp, "beside", beside, {batch, height, width, kAny});
  const int64_t beside_channels = beside ? beside->size(3) : 0;
  const Tensor y =
      torch::stable::new_empty(dense_x, {batch, height, width, beside_channels + out_channels}, ScalarType::Float);
  cpu::winograd({.x = dense_x.const_data_ptr<float>(),
                 .weight = dense_weight.const_data_ptr<float>(),
                 .bias = dense_bias.const_data_ptr<float>(),
                 .other = data_of(dense_other),
                 .beside = data_of(dense_beside),
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

Tensor pointwise(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& other,
                 int64_t out_channels, bool relu) {
  constexpr const char* kOp = "pointwise";
  check_processor(kOp);
  at_least_1(kOp, "out_channels", out_channels);
  check_shape(kOp, "x", x, {kAny, kAny, kAny, kAny});
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), in_channels = x.size(3);
  const int64_t panels = cpu::panels(out_channels);
  check_shape(kOp, "weight", weight, {panels, at_least_1(kOp, "channels of x", in_channels), cpu::kPanel});
  check_shape(kOp, "bias", bias, {panels * cpu::kPanel});
  const Tensor dense_x = dense_float(kOp, "x", x), dense_weight = dense_float(kOp, "weight", weight);
  const Tensor dense_bias = dense_float(kOp, "bias", bias);
  const std::optional<Tensor> dense_other = dense_map(kOp, "other", other, {batch, height, width, out_channels});
  const Tensor y = torch::stable::new_empty(dense_x, {batch, height, width, out_channels}, ScalarType::Float);
  cpu::pointwise({.x = dense_x.const_data_ptr<float>(),
                  .weight = dense_weight.const_data_ptr<float>(),
                  .bias = dense_bias.const_data_ptr<float>(),
                  .other = data_of(dense_other),
                  .y = y.mutable_data_ptr<float>(),
                  .pixels = batch * height * width,
                  .in_channels = in_channels,
                  .out_channels = out_channels,
                  .relu = relu});
  return y;
}

bool has_convolutions() { return cpu::has_convolutions(); }

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def(
      "winograd(Tensor x, Tensor weight, Tensor bias, Tensor? other, Tensor? beside, int out_channels, bool relu) -> "
      "Tensor");
  m.def("pointwise(Tensor x, Tensor weight, Tensor bias, Tensor? other, int out_channels, bool relu) -> Tensor");
  m.def("has_convolutions() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) {
  m.impl("winograd", TORCH_BOX(&winograd));
  m.impl("pointwise", TORCH_BOX(&pointwise));
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CompositeExplicitAutograd, m) {
  m.impl("has_convolutions", TORCH_BOX(&has_convolutions));
}

}  // namespace
}  // namespace refinedet
