// How the weights of convolutions lie for inference on the CPU: by output channels in panels, the last padded by zeros.
#pragma once

#include <cstdint>

namespace refinedet::cpu {

inline constexpr int64_t kPanel = 16;  // output channels: a line of the cache

inline int64_t panels(int64_t channels) { return (channels - 1) / kPanel + 1; }  // channels >= 1

// Whether this processor has the instructions, AVX2 and FMA.
bool has_convolutions();

}  // namespace refinedet::cpu
