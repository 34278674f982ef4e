// The convention of all operators, and the way from a registered operator to its kernels.
//
// csrc/ops/<x>/<x>.h declares what the kernels of both devices take:
//   XInputs   arrays and their sizes
//   XOptions  numbers that the caller chooses
//   XOutputs  arrays to write
// Each struct lists its fields once, by name, in `fields`: the launchers of refinedet._C (python/launchers.cpp) and the
// harness (tests/simulated) read it. Each device, in the namespaces cpu and cuda, has
//   x_limits(inputs, options)            why the kernels cannot take this request, or an empty string; reads no array
//   x_workspace_bytes(inputs, options)   CUDA: memory that `x` needs beside inputs and outputs, by their sizes
//   x(inputs, options, outputs)          CUDA: also the workspace, aligned to 256 bytes, and a stream
// CPU kernels allocate for themselves and are done when they return. CUDA's allocate nothing and wait for nothing.
//
// A registered operator checks the devices of its arguments, then their shapes, then the values of its options, then
// the limits of the kernels; only then it converts arguments and allocates results (checks.h).
#pragma once

#include <string>

#include "checks.h"

#ifdef REFINEDET_WITH_CUDA
#include "cuda/device.h"
#endif

namespace refinedet {

// Do the CUDA kernels run for arguments that are where this tensor is?
#ifdef REFINEDET_WITH_CUDA
inline bool on_gpu(const Tensor& tensor) { return cuda::on_gpu(tensor); }
#else
inline bool on_gpu(const Tensor&) { return false; }
#endif

// The tensor, contiguous, in a type that the kernels read. Those of CUDA read half types as they are.
inline Tensor dense_input(const char* op, Name name, const Tensor& tensor) {
  return on_gpu(tensor) && is_half(tensor) ? dense(tensor) : dense_float(op, name, tensor);
}

template <class Inputs, class Options, class Outputs>
struct Kernels {
  const char* op;
  std::string (*cpu_limits)(const Inputs&, const Options&);
  void (*cpu_run)(const Inputs&, const Options&, const Outputs&);
#ifdef REFINEDET_WITH_CUDA
  std::string (*cuda_limits)(const Inputs&, const Options&);
  int64_t (*cuda_workspace_bytes)(const Inputs&, const Options&);
  void (*cuda_run)(const Inputs&, const Options&, const Outputs&, void* workspace, cuda::Stream);
#endif

  // `tensor` tells the device. Arrays need not be given yet.
  void check_limits(const Tensor& tensor, const Inputs& inputs, const Options& options) const {
#ifdef REFINEDET_WITH_CUDA
    const std::string reason = on_gpu(tensor) ? cuda_limits(inputs, options) : cpu_limits(inputs, options);
#else
    (void)tensor;
    const std::string reason = cpu_limits(inputs, options);
#endif
    check(reason.empty(), op, reason);
  }

  void run(const Tensor& tensor, const Inputs& inputs, const Options& options, const Outputs& outputs) const {
#ifdef REFINEDET_WITH_CUDA
    if (on_gpu(tensor)) {
      const cuda::CurrentDevice device(tensor);
      // Of torch's caching allocator, whose blocks are aligned to 512 bytes.
      const int64_t bytes = cuda_workspace_bytes(inputs, options);
      const Tensor workspace = torch::stable::new_empty(tensor, {bytes}, ScalarType::Byte);
      return cuda_run(inputs, options, outputs, workspace.mutable_data_ptr(), device.stream());
    }
#else
    (void)tensor;
#endif
    cpu_run(inputs, options, outputs);
  }
};

#ifdef REFINEDET_WITH_CUDA
#define REFINEDET_KERNELS(op) \
  ::refinedet::Kernels { #op, cpu::op##_limits, cpu::op, cuda::op##_limits, cuda::op##_workspace_bytes, cuda::op }
#else
#define REFINEDET_KERNELS(op) \
  ::refinedet::Kernels { #op, cpu::op##_limits, cpu::op }
#endif

}  // namespace refinedet
