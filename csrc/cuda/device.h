// Torch's device and stream, for the operators. The launchers take a stream and know nothing of torch.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <memory>

#include "cuda/runtime.h"

namespace refinedet::cuda {

// Do the kernels run for this tensor?
bool on_gpu(const torch::stable::Tensor& tensor);

// While it lives, the device of a tensor is the current one.
class CurrentDevice {
 public:
  explicit CurrentDevice(const torch::stable::Tensor& tensor);

  // What torch uses there at the moment.
  Stream stream() const { return stream_; }

 private:
  Stream stream_;
  std::shared_ptr<void> guard_;
};

// Waits for what torch's stream has to do, then reads the only element of a tensor.
int64_t read_number(const torch::stable::Tensor& tensor);

}  // namespace refinedet::cuda
