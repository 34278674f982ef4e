// The NVIDIA driver of this machine.
#pragma once

#include "export.h"

namespace refinedet::cuda {

// The newest CUDA that it supports, 13000 for 13.0; 0 without a driver.
REFINEDET_EXPORT int driver_version();

}  // namespace refinedet::cuda
