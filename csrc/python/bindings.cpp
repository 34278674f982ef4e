// The module refinedet._C: all that needs Python. It is linked with librefinedet.so, which has the operators.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/version.h>

#include "build_config.h"
#include "library.h"

#ifdef REFINEDET_WITH_CUDA
#include "python/launchers.h"
#endif

namespace py = pybind11;

namespace {

// "2.10" from the layout of TORCH_TARGET_VERSION: major in the highest byte, minor in the next.
std::string target_version() {
  constexpr unsigned long long target = TORCH_TARGET_VERSION;
  return std::to_string(target >> 56) + "." + std::to_string((target >> 48) & 0xff);
}

py::dict build_info() {
  py::dict info;
  info["version"] = REFINEDET_VERSION;
  info["compiler"] = __VERSION__;
  info["flags"] = REFINEDET_CXX_FLAGS;
  info["torch_built_with"] = TORCH_VERSION;
  info["torch_target"] = target_version();
#ifdef REFINEDET_WITH_CUDA
  info["cuda"] = true;
  info["nvcc"] = REFINEDET_NVCC_VERSION;
  info["nvcc_flags"] = REFINEDET_NVCC_FLAGS;
  info["architectures"] = REFINEDET_ARCHITECTURES;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled core of refinedet; importing it registers the operators torch.ops.refinedet.*";
  module.def("library_version", &refinedet_version, "Version of the package that librefinedet.so is of.");
  module.def("build_info", &build_info,
             "How this object was built: version of the package, compiler and flags, torch whose headers it was built "
             "with, oldest torch it runs with, whether it holds CUDA kernels; if so nvcc, its flags, architectures.");
#ifdef REFINEDET_WITH_CUDA
  refinedet::cuda::bind(module);
#endif
}
