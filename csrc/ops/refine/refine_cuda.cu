// refine on the GPU (contract: ops/refine/refine.h; costs: docs/kernels/refine.md).
#include "ops/refine/refine_cuda.h"

#include "cuda/load.h"

namespace refinedet::cuda {
namespace {

constexpr int kThreads = 256;

// One thread: one anchor, of every gridDim.y-th image. An anchor that all images share is read once.
template <class T>
__global__ void __launch_bounds__(kThreads)
    refine_anchors_kernel(const float* anchors, bool shared_anchors, const T* offsets, int64_t batch,
                          int64_t num_anchors, Variances variances, float* refined) {
  const int64_t anchor = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (anchor >= num_anchors) return;
  Center box{};
  if (shared_anchors) box = load_center(anchors, anchor);
  for (int64_t image = blockIdx.y; image < batch; image += gridDim.y) {
    const int64_t row = image * num_anchors + anchor;
    if (!shared_anchors) box = load_center(anchors, row);
    const Center moved = decode(box, load_center(offsets, row), variances);
    store_row(refined, row, moved.cx, moved.cy, moved.w, moved.h);
  }
}

#define INSTANTIATE(T) \
  template __global__ void refine_anchors_kernel(const float*, bool, const T*, int64_t, int64_t, Variances, float*)
INSTANTIATE(float);
INSTANTIATE(Half);
INSTANTIATE(BFloat16);
#undef INSTANTIATE

}  // namespace

#if !defined(__CUDACC_RTC__)

std::string refine_limits(const RefineInputs&, const RefineOptions&) { return {}; }

int64_t refine_workspace_bytes(const RefineInputs&, const RefineOptions&) { return 0; }

void refine(const RefineInputs& in, const RefineOptions& options, const RefineOutputs& out, void*, Stream stream) {
  constexpr int64_t kMaxRows = 1024;  // of blocks: more than any GPU runs at once
  if (in.batch == 0 || in.num_anchors == 0) return;
  const dim3 grid(static_cast<unsigned>((in.num_anchors + kThreads - 1) / kThreads),
                  static_cast<unsigned>(std::min(in.batch, kMaxRows)));
  dispatch(in.type, [&](auto element) {
    using T = decltype(element);
    launch("refine_anchors_kernel", refine_anchors_kernel<T>, grid, dim3(kThreads), 0, stream, in.anchors,
           in.shared_anchors, static_cast<const T*>(in.offsets), in.batch, in.num_anchors, options.variances,
           out.refined);
  });
}

#endif

}  // namespace refinedet::cuda
