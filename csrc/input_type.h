// Element types in which kernels read what the network puts out: those of CUDA all, those of the CPU float32 only.
#pragma once

namespace refinedet {

enum class InputType { kFloat32, kFloat16, kBFloat16 };

}  // namespace refinedet
