// librefinedet.so: the operators, without Python. They register themselves when it is loaded, and torch calls them by
// pointers. What others call by name is here and, for builds with CUDA, in cuda/driver.h and ops/*/*_cuda.h.
#pragma once

#include "export.h"

// Of the package, "0.1.0". What was compiled to call the operators has to be of the same one.
extern "C" REFINEDET_EXPORT const char* refinedet_version();
