// Argument checks of the operators. A message starts with "refinedet.<op>: " and names the argument, its shape or value
// and what is expected; the Python faces turn it into refinedet.errors.InputError (refinedet/ops/call.py).
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "box_math.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // of newer headers, whose message is torch's own
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// Dispatch keys of the implementations. tests/simulated exchanges them: it runs the CUDA kernels on CPU tensors.
#ifdef REFINEDET_CUDA_ON_CPU
#define REFINEDET_CPU_KEY CUDA
#define REFINEDET_CUDA_KEY CPU
#else
#define REFINEDET_CPU_KEY CPU
#define REFINEDET_CUDA_KEY CUDA
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

inline void check_shape(const char* op, const char* name, const Tensor& tensor,
                        std::initializer_list<int64_t> expected) {
  const auto sizes = tensor.sizes();
  bool same = sizes.size() == expected.size();
  for (size_t i = 0; same && i < expected.size(); ++i) {
    const int64_t size = expected.begin()[i];
    same = size == kAny || size == sizes[i];
  }
  if (!same) fail(op, name, " has shape ", shape_text(sizes), ", expected ", shape_text(expected));
}

// The tensor as contiguous float32: float16, bfloat16 and float64 are converted, so every kernel computes in float32.
inline Tensor dense_float(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  const bool floating = type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
                        type == ScalarType::Double;
  check(floating, op, name, " must hold floating-point numbers: convert it with .float()");
  const Tensor converted = type == ScalarType::Float ? tensor : torch::stable::to(tensor, ScalarType::Float);
  return converted.is_contiguous() ? converted : torch::stable::contiguous(converted);
}

inline Tensor dense_int64(const char* op, const char* name, const Tensor& tensor) {
  check(tensor.scalar_type() == ScalarType::Long, op, name, " must hold int64: convert it with .long()");
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Variances to_variances(const char* op, const std::vector<double>& values) {
  check(values.size() == 4, op, "variances must be 4 numbers, got ", values.size());
  const auto value = [&](size_t i) { return static_cast<float>(values[i]); };
  return {value(0), value(1), value(2), value(3)};
}

}  // namespace refinedet
