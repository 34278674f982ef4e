// The only place that knows which of the four compilers reads a kernel:
//   nvcc      for the product;
//   NVRTC     for the architectures nvcc has dropped (sm_52, sm_61): kernels only, no host code, no standard headers;
//   g++       with REFINEDET_CUDA_RUNTIME, which names a header with CUDA's language and what this one has below;
//   g++       without it: host declarations only (the operators' registration).
#pragma once

#if defined(REFINEDET_CUDA_RUNTIME)
#include REFINEDET_CUDA_RUNTIME
#elif !defined(__CUDACC_RTC__)
#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#endif

#if defined(__CUDACC__)
// A static array in shared memory. A macro because another runtime has to hand every thread of a block the same array.
#define REFINEDET_SHARED(type, name, count) __shared__ type name[count]
// The dynamic shared memory of the launch, as an array of `type`.
#define REFINEDET_DYNAMIC_SHARED(type, name)                         \
  extern __shared__ __align__(16) unsigned char refinedet_dynamic[]; \
  type* const name = reinterpret_cast<type*>(refinedet_dynamic)
#endif

namespace refinedet::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

#if !defined(__CUDACC_RTC__) && !defined(REFINEDET_CUDA_RUNTIME)

using Stream = cudaStream_t;

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the runtime keeps an error until it is asked: the next launch would find this one
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline void memset_async(void* destination, int value, size_t bytes, Stream stream) {
  check(cudaMemsetAsync(destination, value, bytes, stream), "memset");
}

#if defined(__CUDACC__)
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            Arguments... arguments) {
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  check(cudaGetLastError(), name);
}
#endif

#endif

}  // namespace refinedet::cuda
