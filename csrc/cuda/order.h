// The order of values on a GPU, for the operators: torch sorts better than a kernel of ours would.
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>

#include "checks.h"

namespace refinedet::cuda {

// Positions of the values within the last dimension, by value, equal values (-0 and 0 among them) in their order.
inline Tensor stable_order(const Tensor& values, bool descending) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(values), from(std::optional<bool>(true)), from(int64_t{-1}), from(descending)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const Tensor sorted = torch::stable::detail::to<Tensor>(stack[0]);  // takes it over, to free it
  return torch::stable::detail::to<Tensor>(stack[1]);
}

}  // namespace refinedet::cuda
