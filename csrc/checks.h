// Argument checks of the operators. A message starts with "refinedet.<op>: " and names the argument, its shape or value
// and what is expected; the Python faces turn it into refinedet.errors.InputError (refinedet/ops/call.py).
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cfloat>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "box_math.h"
#include "input_type.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // of newer headers, whose message is torch's own
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace refinedet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr int64_t kAny = -1;  // a size that check_shape leaves free

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "refinedet." << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

template <class... Parts>
void check(bool condition, const char* op, const Parts&... parts) {
  if (!condition) fail(op, parts...);
}

// The name of an argument, with the number of the level where it has several.
struct Name {
  static constexpr int kWhole = -1;

  Name(const char* text_, int level_ = kWhole) : text(text_), level(level_) {}

  const char* text;
  int level;
};

inline std::ostream& operator<<(std::ostream& out, const Name& name) {
  out << name.text;
  if (name.level != Name::kWhole) out << '[' << name.level << ']';
  return out;
}

// --- Devices ---------------------------------------------------------------------------------------------------------

struct Argument {
  Name name;
  const Tensor* tensor;  // null = not given
};

inline const Tensor* pointer_to(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

inline std::string device_name(const Tensor& tensor) {
  return tensor.is_cpu() ? "the CPU" : "GPU " + std::to_string(tensor.get_device_index());
}

// The dispatcher comes to CUDA when any tensor is there: all have to be, and on the same GPU. The first one is given.
inline void check_same_device(const char* op, std::initializer_list<Argument> arguments) {
  for (const Argument& argument : arguments) {  // Python's None is a tensor that is not defined
    const bool given = argument.tensor == nullptr || argument.tensor->defined();
    check(given, op, argument.name, " is None, expected a tensor");
  }
  const Argument& first = *arguments.begin();
  const bool on_cpu = first.tensor->is_cpu();
  for (const Argument& argument : arguments) {
    if (argument.tensor == nullptr || argument.tensor == first.tensor) continue;
    if (on_cpu ? argument.tensor->is_cpu() : argument.tensor->device() == first.tensor->device()) continue;
    fail(op, argument.name, " is on ", device_name(*argument.tensor), ", but ", first.name, " is on ",
         device_name(*first.tensor), ": move one of them with .to()");
  }
}

// --- Shapes ----------------------------------------------------------------------------------------------------------

// "[2, 6375, *]"
template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  const char* separator = "[";
  for (const int64_t size : sizes) {
    text << separator << (size == kAny ? "*" : std::to_string(size));
    separator = ", ";
  }
  return text.str() + (sizes.size() == 0 ? "[]" : "]");
}

inline void check_shape(const char* op, Name name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  const auto sizes = tensor.sizes();
  bool same = sizes.size() == expected.size();
  for (size_t i = 0; same && i < expected.size(); ++i) {
    const int64_t size = expected.begin()[i];
    same = size == kAny || size == sizes[i];
  }
  if (!same) fail(op, name, " has shape ", shape_text(sizes), ", expected ", shape_text(expected));
}

// --- Values ----------------------------------------------------------------------------------------------------------

// An option, as a kernel wants it. NaN is refused.
template <class T = float>
T at_least_0(const char* op, const char* name, double value) {
  check(value >= 0, op, name, " must be at least 0, got ", value);
  return static_cast<T>(value);
}

inline float number(const char* op, const char* name, double value) {
  check(value == value, op, name, " must be a number, got ", value);
  return static_cast<float>(value);
}

// A divisor: a float32 that is not subnormal.
inline float above_0(const char* op, const char* name, double value) {
  check(value >= FLT_MIN, op, name, " must be a number above 0, got ", value);
  return static_cast<float>(value);
}

inline int64_t at_least_1(const char* op, const char* name, int64_t value) {
  check(value >= 1, op, name, " must be at least 1, got ", value);
  return value;
}

inline Variances to_variances(const char* op, const std::vector<double>& values) {
  check(values.size() == 4, op, "variances must be 4 numbers, got ", values.size());
  const auto value = [&](size_t i) {
    const bool usable = values[i] >= FLT_MIN && values[i] <= FLT_MAX;
    check(usable, op, "variances must be numbers above 0, got ", values[i]);
    return static_cast<float>(values[i]);
  };
  return {value(0), value(1), value(2), value(3)};
}

// --- Results ----------------------------------------------------------------------------------------------------------

struct DeleteTensor {
  void operator()(AtenTensorHandle tensor) const { aoti_torch_delete_tensor_object(tensor); }
};

// A tensor that nothing else refers to, as the caller of an operator gets it.
using Result = std::unique_ptr<AtenTensorOpaque, DeleteTensor>;

// Uninitialised, beside `like`. On the CPU without the dispatcher, which costs more than the allocation.
inline Result new_result(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  AtenTensorHandle result = nullptr;
  if (!like.is_cpu()) {
    const Tensor tensor = torch::stable::new_empty(like, shape, type);
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor.get(), &result));
    return Result(result);
  }
  constexpr size_t kMostDimensions = 3;
  int64_t strides[kMostDimensions], stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape.begin()[i]) strides[i] = stride;
  const auto element = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(), strides,
                                                         element, aoti_torch_device_type_cpu(), 0, &result));
  return Result(result);
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return Tensor(new_result(like, shape, type).release());
}

template <class T>
T* mutable_data(const Result& result) {
  void* data = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(result.get(), &data));
  return static_cast<T*>(data);
}

// --- Conversions -----------------------------------------------------------------------------------------------------

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The tensor as contiguous float32: float16, bfloat16 and float64 are converted, so every kernel computes in float32.
inline Tensor dense_float(const char* op, Name name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  const bool floating = type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
                        type == ScalarType::Double;
  check(floating, op, name, " must hold floating-point numbers: convert it with .float()");
  return dense(type == ScalarType::Float ? tensor : torch::stable::to(tensor, ScalarType::Float));
}

inline Tensor dense_int64(const char* op, Name name, const Tensor& tensor) {
  check(tensor.scalar_type() == ScalarType::Long, op, name, " must hold int64: convert it with .long()");
  return dense(tensor);
}

inline bool is_half(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Half || tensor.scalar_type() == ScalarType::BFloat16;
}

inline InputType input_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return InputType::kFloat16;
    case ScalarType::BFloat16: return InputType::kBFloat16;
    default: return InputType::kFloat32;
  }
}

}  // namespace refinedet
