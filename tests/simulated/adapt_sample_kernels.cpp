// Every sample kernel has the same parameters; the request gives the launch.
#include "cuda/runtime.h"
#include "driver.h"

namespace {

using cuda_on_cpu::Request;
using Kernel = void(const int* in, int* out, int n);

// `memset` says which byte the outputs start with, since kernels that count need a zero.
void run(Request& request, Kernel* kernel) {
  const auto dimension = [&](const char* name) { return static_cast<unsigned>(request.integer(name)); };
  int* const out = request.output<int>("out");
  const auto bytes = static_cast<size_t>(request.shape("out").at(0)) * sizeof(int);
  refinedet::cuda::memset_async(out, static_cast<int>(request.integer("memset")), bytes, nullptr);
  const dim3 grid{dimension("grid_x"), dimension("grid_y"), dimension("grid_z")};
  const dim3 block{dimension("block_x"), dimension("block_y"), dimension("block_z")};
  request.workspace(request.integer("workspace"));
  for (int64_t i = request.integer("repeat"); i > 0; --i)
    refinedet::cuda::launch("sample", kernel, grid, block, dimension("shared_bytes"), nullptr, request.input<int>("in"),
                            out, static_cast<int>(request.integer("n")));
}

template <Kernel* kernel>
void run(Request& request) {
  run(request, kernel);
}

void refuse(Request& request) {
  throw std::runtime_error("n = " + std::to_string(request.integer("n")) + " is too large");
}

}  // namespace

// clang-format off: it takes the calls of `_` for casts
#define SAMPLES(_)                                                                                          \
  _(sum) _(reverse) _(warp) _(short_warp) _(half_warp) _(atomics) _(votes) _(warp_rounds) _(first_bytes)    \
  _(order) _(positions) _(many_barriers) _(many_shuffles) _(missing_barrier) _(missing_second_barrier)      \
  _(missing_syncwarp) _(shuffle_is_no_barrier) _(syncwarp_is_no_barrier) _(plain_counter) _(block_race)     \
  _(plain_counter_of_blocks) _(divergent_barrier) _(barrier_after_exit) _(barrier_against_collective)       \
  _(exited_lane) _(not_in_own_mask) _(different_masks) _(different_sites) _(outside_mask) _(shared_overrun) \
  _(dynamic_overrun) _(write_overrun) _(read_overrun) _(misaligned_vector) _(signed_overflow) _(endless)    \
  _(much_shared)
// clang-format on

#define DECLARE(name) Kernel name##_kernel;
#define ENTRY(name) {#name, run<sample::name##_kernel>},

namespace sample {
SAMPLES(DECLARE)
}

const cuda_on_cpu::Launchers cuda_on_cpu::launchers = {SAMPLES(ENTRY){"refuse", refuse}};
