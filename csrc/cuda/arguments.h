// Arguments of the operators on CUDA, beside what ops/checks.h does for both devices.
#pragma once

#include <initializer_list>
#include <string>

#include "checks.h"
#include "cuda/input_type.h"

namespace refinedet::cuda {

struct Argument {
  const char* name;
  const Tensor* tensor;  // null = not given
};

inline const Tensor* pointer_to(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

inline std::string device_name(const Tensor& tensor) {
  return tensor.is_cpu() ? "the CPU" : "GPU " + std::to_string(tensor.get_device_index());
}

// The dispatcher comes to CUDA when any tensor is there: all have to be, and on the same GPU. The first one is given.
inline void check_same_device(const char* op, std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  for (const Argument& argument : arguments) {
    if (argument.tensor == nullptr || argument.tensor->device() == first.tensor->device()) continue;
    fail(op, argument.name, " is on ", device_name(*argument.tensor), ", but ", first.name, " is on ",
         device_name(*first.tensor), ": move one of them with .to()");
  }
}

// The tensor, contiguous, in a type that the kernels read: float64 is converted to float32.
inline Tensor dense_input(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type != ScalarType::Half && type != ScalarType::BFloat16) return dense_float(op, name, tensor);
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline InputType input_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return InputType::kFloat16;
    case ScalarType::BFloat16: return InputType::kBFloat16;
    default: return InputType::kFloat32;
  }
}

// Memory of torch's caching allocator on the device of `tensor`. Its blocks are aligned to 512 bytes.
inline Tensor new_workspace(const Tensor& tensor, int64_t bytes) {
  return torch::stable::new_empty(tensor, {bytes}, ScalarType::Byte);
}

}  // namespace refinedet::cuda
