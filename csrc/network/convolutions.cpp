#include <torch/csrc/stable/library.h>

#include <optional>

#include "checks.h"
#include "network/panels.h"
#include "network/pointwise.h"
#include "network/winograd.h"

namespace refinedet {
namespace {

// What all convolutions of channels-last maps [B,H,W,C] are given, checked, without gaps.
struct Arguments {
  Tensor x, weight, bias;
  std::optional<Tensor> other;
  int64_t batch, height, width, in_channels;
};

Arguments arguments_of(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const std::optional<Tensor>& other) {
  check(cpu::has_convolutions(), op, "this processor lacks AVX2 or FMA");
  check_shape(op, "x", x, {kAny, kAny, kAny, kAny});
  return {.x = dense_float(op, "x", x),
          .weight = dense_float(op, "weight", weight),
          .bias = dense_float(op, "bias", bias),
          .other = other ? std::optional(dense_float(op, "other", *other)) : std::nullopt,
          .batch = x.size(0),
          .height = x.size(1),
          .width = x.size(2),
          .in_channels = x.size(3)};
}

const float* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr<float>() : nullptr; }

Tensor new_map(const Arguments& a, int64_t height, int64_t width, int64_t channels) {
  return torch::stable::new_empty(a.x, {a.batch, height, width, channels}, ScalarType::Float);
}

void check_winograd(const char* op, const Arguments& a, int64_t out_channels) {
  at_least_1(op, "out_channels", out_channels);
  check(a.in_channels % cpu::kWinogradChannels == 0, op, "x has ", a.in_channels, " channels, expected a multiple of ",
        cpu::kWinogradChannels);
  check_shape(op, "weight", a.weight, {36, cpu::panels(out_channels), a.in_channels, cpu::kPanel});
  check_shape(op, "bias", a.bias, {cpu::panels(out_channels) * cpu::kPanel});
}

void run_winograd(const Arguments& a, Tensor y, int64_t out_channels, bool relu) {
  cpu::winograd({.x = a.x.const_data_ptr<float>(),
                 .weight = a.weight.const_data_ptr<float>(),
                 .bias = a.bias.const_data_ptr<float>(),
                 .other = data_of(a.other),
                 .y = y.mutable_data_ptr<float>(),
                 .batch = a.batch,
                 .height = a.height,
                 .width = a.width,
                 .in_channels = a.in_channels,
                 .out_channels = out_channels,
                 .beside_channels = y.size(3) - out_channels,
                 .relu = relu});
}

Tensor winograd(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& other,
                int64_t out_channels, bool relu) {
  constexpr const char* kOp = "winograd";
  const Arguments a = arguments_of(kOp, x, weight, bias, other);
  check_winograd(kOp, a, out_channels);
  if (a.other) check_shape(kOp, "other", *a.other, {a.batch, a.height, a.width, out_channels});
  const Tensor y = new_map(a, a.height, a.width, out_channels);
  run_winograd(a, y, out_channels, relu);
  return y;
}

// The last channels of `whole`; the others stay.
void winograd_into(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor whole, int64_t out_channels,
                   bool relu) {
  constexpr const char* kOp = "winograd_into";
  const Arguments a = arguments_of(kOp, x, weight, bias, std::nullopt);
  check_winograd(kOp, a, out_channels);
  check_shape(kOp, "whole", whole, {a.batch, a.height, a.width, kAny});
  check(whole.is_contiguous() && whole.scalar_type() == ScalarType::Float, kOp, "whole must be float32 without gaps");
  check(whole.size(3) >= out_channels, kOp, "whole has ", whole.size(3), " channels, expected at least ", out_channels);
  run_winograd(a, whole, out_channels, relu);
}

// A 1x1 convolution, or with weights of two parts a deconvolution of 2x2 and stride 2.
Tensor pointwise(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& other,
                 int64_t out_channels, int64_t room, bool relu) {
  constexpr const char* kOp = "pointwise";
  const Arguments a = arguments_of(kOp, x, weight, bias, other);
  at_least_1(kOp, "out_channels", out_channels);
  check(room >= 0, kOp, "room must be at least 0, got ", room);
  check_shape(kOp, "weight", a.weight, {kAny, kAny, a.in_channels, cpu::kPanel});
  const int64_t parts = a.weight.size(0);
  check(parts == 1 || (parts == 2 && room == 0), kOp, "weight has ", parts, " parts, expected 1, or 2 without room");
  const int64_t columns = parts * out_channels;  // of a part
  check_shape(kOp, "weight", a.weight, {parts, cpu::panels(columns), a.in_channels, cpu::kPanel});
  check_shape(kOp, "bias", a.bias, {parts, cpu::panels(columns) * cpu::kPanel});
  if (a.other) check_shape(kOp, "other", *a.other, {a.batch, parts * a.height, parts * a.width, out_channels});
  const int64_t pixels = a.batch * a.height * a.width;
  const Tensor y = new_map(a, parts * a.height, parts * a.width, out_channels + room);
  cpu::pointwise({.x = a.x.const_data_ptr<float>(),
                  .weight = a.weight.const_data_ptr<float>(),
                  .bias = a.bias.const_data_ptr<float>(),
                  .other = data_of(a.other),
                  .y = y.mutable_data_ptr<float>(),
                  .rows = parts == 1 ? 1 : a.batch * a.height,
                  .width = parts == 1 ? pixels : a.width,
                  .in_channels = a.in_channels,
                  .out_channels = columns,
                  .parts = parts,
                  .room = room,
                  .relu = relu});
  return y;
}

bool has_convolutions() { return cpu::has_convolutions(); }

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def("winograd(Tensor x, Tensor weight, Tensor bias, Tensor? other, int out_channels, bool relu) -> Tensor");
  m.def(
      "winograd_into(Tensor x, Tensor weight, Tensor bias, Tensor(a!) whole, int out_channels, bool relu) -> ()");
  m.def(
      "pointwise(Tensor x, Tensor weight, Tensor bias, Tensor? other, int out_channels, int room, bool relu) -> "
      "Tensor");
  m.def("has_convolutions() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) {
  m.impl("winograd", TORCH_BOX(&winograd));
  m.impl("winograd_into", TORCH_BOX(&winograd_into));
  m.impl("pointwise", TORCH_BOX(&pointwise));
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CompositeExplicitAutograd, m) {
  m.impl("has_convolutions", TORCH_BOX(&has_convolutions));
}

}  // namespace
}  // namespace refinedet
