// The part of refinedet._C that only a build with CUDA kernels has.
#pragma once

#include <pybind11/pybind11.h>

namespace refinedet::cuda {

// Adds the functions `kernel_resources` and `driver_version` and the submodule `launchers`.
void bind(pybind11::module_& module);

}  // namespace refinedet::cuda
