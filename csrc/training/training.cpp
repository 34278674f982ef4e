// The functions of training.h as operators of the dispatcher, for refinedet/models/fused.py and
// refinedet/training/sgd.py.
#include "training/training.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "checks.h"

namespace refinedet {
namespace {

constexpr const char* kPool = "relu_pool";
constexpr const char* kNorm = "l2norm";
constexpr const char* kSgd = "caffe_sgd";

// float32 without gaps, in place: whoever calls has looked, and a copy would cost what is saved here.
const float* floats(const char* op, const char* name, const Tensor& tensor) {
  check(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous(), op, name,
        " must be contiguous float32: convert it with .float().contiguous()");
  return tensor.const_data_ptr<float>();
}

std::tuple<Tensor, Tensor> relu_pool(const Tensor& map) {
  check_shape(kPool, "map", map, {kAny, kAny, kAny, kAny});
  const cpu::MapSize size{map.size(0), map.size(1), map.size(2), map.size(3)};
  const float* const values = floats(kPool, "map", map);
  const int64_t rows = (size.rows + 1) / 2, columns = (size.columns + 1) / 2;
  const Tensor pooled = torch::stable::new_empty(map, {size.batch, rows, columns, size.channels});
  const Tensor choice = torch::stable::new_empty(map, {size.batch, rows, columns, size.channels}, ScalarType::Byte);
  cpu::relu_pool(values, size, pooled.mutable_data_ptr<float>(), choice.mutable_data_ptr<uint8_t>());
  return {pooled, choice};
}

Tensor relu_pool_backward(const Tensor& gradient, const Tensor& choice, int64_t rows, int64_t columns) {
  check_shape(kPool, "gradient", gradient, {kAny, (rows + 1) / 2, (columns + 1) / 2, kAny});
  const cpu::MapSize size{gradient.size(0), rows, columns, gradient.size(3)};
  check_shape(kPool, "choice", choice, {size.batch, gradient.size(1), gradient.size(2), size.channels});
  check(choice.scalar_type() == ScalarType::Byte && choice.is_contiguous(), kPool, "choice must be contiguous uint8");
  const float* const values = floats(kPool, "gradient", gradient);
  const Tensor result = torch::stable::new_empty(gradient, {size.batch, rows, columns, size.channels});
  cpu::relu_pool_backward(values, choice.const_data_ptr<uint8_t>(), size, result.mutable_data_ptr<float>());
  return result;
}

cpu::Rows rows_of(const Tensor& rows, const Tensor& factors) {
  check_shape(kNorm, "rows", rows, {kAny, kAny});
  check_shape(kNorm, "factors", factors, {rows.size(1)});
  return {floats(kNorm, "rows", rows), rows.size(0), rows.size(1)};
}

std::tuple<Tensor, Tensor> l2norm(const Tensor& rows, const Tensor& factors, double epsilon) {
  const cpu::Rows in = rows_of(rows, factors);
  const Tensor result = torch::stable::new_empty(rows, {in.count, in.channels});
  const Tensor inverse = torch::stable::new_empty(rows, {in.count});
  cpu::l2norm(in, floats(kNorm, "factors", factors), static_cast<float>(epsilon), result.mutable_data_ptr<float>(),
              inverse.mutable_data_ptr<float>());
  return {result, inverse};
}

std::tuple<Tensor, Tensor> l2norm_backward(const Tensor& gradient, const Tensor& rows, const Tensor& factors,
                                           const Tensor& inverse) {
  const cpu::Rows in = rows_of(rows, factors);
  check_shape(kNorm, "gradient", gradient, {in.count, in.channels});
  check_shape(kNorm, "inverse", inverse, {in.count});
  const Tensor row_gradient = torch::stable::new_empty(rows, {in.count, in.channels});
  const Tensor factor_gradient = torch::stable::new_empty(rows, {in.channels});
  cpu::l2norm_backward(floats(kNorm, "gradient", gradient), in, floats(kNorm, "factors", factors),
                       floats(kNorm, "inverse", inverse), row_gradient.mutable_data_ptr<float>(),
                       factor_gradient.mutable_data_ptr<float>());
  return {row_gradient, factor_gradient};
}

// One-dimensional views of a parameter and what belongs to it, in one order.
void caffe_sgd(Tensor weights, Tensor velocity, const Tensor& gradient, double momentum, double decay, double rate) {
  check_shape(kSgd, "weights", weights, {kAny});
  check_shape(kSgd, "velocity", velocity, {weights.size(0)});
  check_shape(kSgd, "gradient", gradient, {weights.size(0)});
  floats(kSgd, "weights", weights);
  floats(kSgd, "velocity", velocity);
  const cpu::SgdOptions options{static_cast<float>(momentum), static_cast<float>(decay), static_cast<float>(rate)};
  cpu::caffe_sgd(floats(kSgd, "gradient", gradient), weights.size(0), options, velocity.mutable_data_ptr<float>(),
                 weights.mutable_data_ptr<float>());
}

STABLE_TORCH_LIBRARY_FRAGMENT(refinedet, m) {
  m.def("relu_pool(Tensor map) -> (Tensor, Tensor)");
  m.def("relu_pool_backward(Tensor gradient, Tensor choice, int rows, int columns) -> Tensor");
  m.def("l2norm(Tensor rows, Tensor factors, float epsilon) -> (Tensor, Tensor)");
  m.def("l2norm_backward(Tensor gradient, Tensor rows, Tensor factors, Tensor inverse) -> (Tensor, Tensor)");
  m.def(
      "caffe_sgd(Tensor(a!) weights, Tensor(b!) velocity, Tensor gradient, float momentum, float decay, float rate) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(refinedet, CPU, m) {
  m.impl("relu_pool", TORCH_BOX(&relu_pool));
  m.impl("relu_pool_backward", TORCH_BOX(&relu_pool_backward));
  m.impl("l2norm", TORCH_BOX(&l2norm));
  m.impl("l2norm_backward", TORCH_BOX(&l2norm_backward));
  m.impl("caffe_sgd", TORCH_BOX(&caffe_sgd));
}

}  // namespace
}  // namespace refinedet
