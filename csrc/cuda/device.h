// Torch's device and stream, for the operators. The launchers take a stream and know nothing of torch.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <memory>

#include "cuda/runtime.h"

namespace refinedet::cuda {

// While it lives, the device of a tensor is the current one.
class Device {
 public:
  explicit Device(const torch::stable::Tensor& tensor);

  // What torch uses there at the moment.
  Stream stream() const { return stream_; }

 private:
  Stream stream_;
  std::shared_ptr<void> guard_;
};

// Waits for the stream, then reads a number from the device.
int64_t read_number(const int64_t* address, Stream stream);

}  // namespace refinedet::cuda
