// What the CPU kernels need of the machine, without a torch header: threads and vector instructions.
#pragma once

#include <cstdint>

// Compiles a function once per instruction set and picks at load time. All clones give the same bits: IEEE operations,
// no contraction of multiply-add, no reassociation.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define REFINEDET_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define REFINEDET_VECTOR_CLONES
#endif

namespace refinedet::cpu {

int64_t num_threads();  // of torch (torch.set_num_threads)

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);

// Runs `function` on disjoint ranges that cover [begin, end), on the threads of torch (torch.set_num_threads). Ranges
// have at least `grain` elements, except the last.
void run_ranges(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context);

template <class Function>
void parallel_for(int64_t begin, int64_t end, int64_t grain, Function function) {
  const auto run = [](int64_t first, int64_t last, void* context) { (*static_cast<Function*>(context))(first, last); };
  run_ranges(begin, end, grain, run, &function);
}

}  // namespace refinedet::cpu
