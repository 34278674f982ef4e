#include "cuda/driver.h"

#include "cuda/runtime.h"

namespace refinedet::cuda {

int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "version of the driver");
  return version;
}

}  // namespace refinedet::cuda
