#include "cuda/device.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"

namespace refinedet::cuda {
namespace {

using CurrentStream = AOTITorchError (*)(int32_t device_index, void** stream);

// The function is in libtorch_cuda, which we do not link because a torch for the CPU has none. A torch that made a CUDA
// tensor has loaded it, but not for everyone to see (RTLD_GLOBAL), so it is asked for by its name.
CurrentStream find_current_stream() {
  constexpr const char* kFunction = "aoti_torch_get_current_cuda_stream";
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* const function = dlsym(library == nullptr ? RTLD_DEFAULT : library, kFunction);
  if (function == nullptr) throw std::runtime_error(std::string("refinedet: torch has no function ") + kFunction);
  return reinterpret_cast<CurrentStream>(function);
}

Stream current_stream(int32_t device_index) {
  static const CurrentStream get_stream = find_current_stream();
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get_stream(device_index, &stream));
  return static_cast<Stream>(stream);
}

}  // namespace

bool on_gpu(const torch::stable::Tensor& tensor) { return !tensor.is_cpu(); }

CurrentDevice::CurrentDevice(const torch::stable::Tensor& tensor)
    : stream_(current_stream(tensor.get_device_index())),
      guard_(std::make_shared<torch::stable::accelerator::DeviceGuard>(tensor.get_device_index())) {}

int64_t read_number(const torch::stable::Tensor& tensor) {
  const CurrentDevice device(tensor);
  int64_t number = 0;
  check(cudaMemcpyAsync(&number, tensor.const_data_ptr(), sizeof(number), cudaMemcpyDeviceToHost, device.stream()),
        "copy to the host");
  check(cudaStreamSynchronize(device.stream()), "wait for the stream");
  return number;
}

}  // namespace refinedet::cuda
