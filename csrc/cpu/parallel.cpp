#include "cpu/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace refinedet::cpu {

int64_t num_threads() { return torch::stable::get_num_threads(); }

void run_ranges(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context) {
  torch::stable::parallel_for(begin, end, grain, [=](int64_t first, int64_t last) { function(first, last, context); });
}

}  // namespace refinedet::cpu
