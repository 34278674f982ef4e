// mine on the GPU in two kernels (contract: ops/mine/mine.h; drawing and costs: docs/kernels/mine.md).
#include "ops/mine/mine_cuda.h"

#include "cuda/block.h"
#include "cuda/layout.h"
#include "cuda/load.h"
#include "cuda/softmax.h"

namespace refinedet::cuda {
namespace {

constexpr int kThreads = 256;  // of the ranking kernels: an anchor each
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kImageThreads = 1024;  // of select_negatives_kernel, which waits for memory: as many as there can be
constexpr float kSmallestNormal = 1.17549435e-38f;  // FLT_MIN
static_assert(softmax_row_size(MineLimits::kMaxClasses) <= kTileTerms);

// How hard an anchor is: the high word of descending_key(loss, anchor), so the hardest has the smallest.
constexpr uint32_t kNoRank = 0xffffffffu;  // not eligible, or a NaN loss

// `positives` and `candidates` start at 0.
struct Workspace {
  int* positives;   // [B] matched anchors
  int* candidates;  // [B] anchors with a rank
  uint32_t* ranks;  // [B,N]
};

__device__ inline uint32_t to_rank(float loss) {
  return loss == loss ? static_cast<uint32_t>(descending_key(loss, 0) >> 32) : kNoRank;
}

__device__ inline bool is_eligible(const MineInputs& in, const MineOptions& options, int64_t row) {
  const bool unmatched = in.labels[row] == 0, apart = in.ious[row] < options.negative_iou;
  const bool possible = in.objectness == nullptr || in.objectness[row] >= options.objectness_threshold;
  return unmatched & apart & possible;  // no &&: the loads do not wait for each other
}

// Adds the lanes of this warp for which `counted` holds.
__device__ inline void count_by_warp(bool counted, int* counter) {
  const unsigned ballot = __ballot_sync(kFullWarp, counted);
  if (lane_index() == 0 && ballot != 0) atomicAdd(counter, __popc(ballot));
}

// One block: 256 anchors of an image, ranked by their losses.
template <class T>
__global__ void __launch_bounds__(kThreads) rank_losses_kernel(MineInputs in, MineOptions options, Workspace work) {
  const T* const losses = static_cast<const T*>(in.losses);
  const int64_t image = blockIdx.y, anchor = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = image * in.num_anchors + anchor;
  const bool inside = anchor < in.num_anchors;
  const uint32_t rank = inside && is_eligible(in, options, row) ? to_rank(load(losses + row)) : kNoRank;
  if (inside) work.ranks[row] = rank;
  count_by_warp(inside && in.labels[row] > 0, &work.positives[image]);
  count_by_warp(rank != kNoRank, &work.candidates[image]);
}

// What stands for the loss -ln(max(p0, FLT_MIN)) of an anchor: -max(p0, FLT_MIN), which orders alike.
__device__ inline float hardness(const float* terms, int num_classes) {
  const float background = terms[0] / sum_terms(terms, num_classes);
  return background < kSmallestNormal ? -kSmallestNormal : -background;
}

// One block: 256 anchors of an image, ranked by their logits. Only eligible anchors' are read.
template <class T>
__global__ void __launch_bounds__(kThreads) rank_logits_kernel(MineInputs in, MineOptions options, Workspace work) {
  REFINEDET_SHARED(float, terms, kTileTerms);
  REFINEDET_SHARED(int, eligible, kThreads);
  REFINEDET_SHARED(int, warp_counts, kWarps);
  const int64_t image = blockIdx.y, first_anchor = int64_t{blockIdx.x} * kThreads;
  const int64_t first_row = image * in.num_anchors + first_anchor, row = first_row + threadIdx.x;
  const bool inside = first_anchor + threadIdx.x < in.num_anchors;
  const bool is_candidate = inside && is_eligible(in, options, row);
  count_by_warp(inside && in.labels[row] > 0, &work.positives[image]);
  const Rank place = rank_in_block(is_candidate, warp_counts);
  if (is_candidate) eligible[place.position] = threadIdx.x;
  if (inside && !is_candidate) work.ranks[row] = kNoRank;
  __syncthreads();
  const int num_classes = static_cast<int>(in.num_classes), row_size = softmax_row_size(num_classes);
  const int step = kTileTerms / row_size;
  const T* const logits = static_cast<const T*>(in.losses) + first_row * num_classes;
  for (int first = 0; first < place.total; first += step) {
    const SoftmaxTile tile{eligible + first, min(step, place.total - first), terms, row_size};
    take_exponentials(tile, logits, num_classes);
    const int i = threadIdx.x;
    uint32_t rank = kNoRank;
    if (i < tile.count) {
      rank = to_rank(hardness(tile.row(i), num_classes));
      work.ranks[first_row + tile.anchors[i]] = rank;
    }
    count_by_warp(rank != kNoRank, &work.candidates[image]);
    __syncthreads();  // before the next tile
  }
}

// The anchors of an image as sort keys, hardest first. A thread holds the ranks of its first anchors in registers, for
// every pass of the selection needs them; it loads those of the others again.
struct RankKeys {
  static constexpr int kHeld = 12;  // 12,288 of an image: with 16 some compilers run out of registers
  static constexpr int64_t kRest = int64_t{kHeld} * kImageThreads;

  const uint32_t* ranks;
  uint32_t held[kHeld];

  __device__ RankKeys(const uint32_t* image_ranks, int64_t count) : ranks(image_ranks) {
    for (int k = 0; k < kHeld; ++k) held[k] = anchor(k) < count ? ranks[anchor(k)] : kNoRank;
  }

  __device__ static int anchor(int k) { return k * kImageThreads + static_cast<int>(threadIdx.x); }

  __device__ static uint64_t to_key(uint32_t rank, int64_t anchor) {
    return rank == kNoRank ? kNoKey : static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(anchor);
  }

  __device__ uint64_t held_key(int k) const { return to_key(held[k], anchor(k)); }

  __device__ uint64_t operator()(int64_t i) const { return to_key(ranks[i], i); }
};

template <class Visit>
__device__ void for_each_key(const RankKeys& keys, int64_t count, const Visit& visit) {
  for (int k = 0; k < RankKeys::kHeld; ++k) {
    if (k * kImageThreads >= count) break;  // only saves work: what is beyond the end is no key
    visit(keys.held_key(k));
  }
  const auto rest = [&](int64_t i) { return keys(RankKeys::kRest + i); };
  for_each_key(rest, count - RankKeys::kRest, visit);
}

__device__ inline double num_wanted(double negative_ratio, int positives) {
  return positives == 0 ? 0.0 : negative_ratio * positives;  // the ratio may be infinity
}

// One block: an image. Finds the key that separates the hardest candidates from the others, and writes the mask.
__global__ void __launch_bounds__(kImageThreads)
    select_negatives_kernel(int64_t num_anchors, double negative_ratio, Workspace work, bool* mask) {
  REFINEDET_SHARED(Selection, selection, 1);
  const int64_t image = blockIdx.x, first_row = image * num_anchors;
  const RankKeys keys(work.ranks + first_row, num_anchors);
  const double wanted = num_wanted(negative_ratio, work.positives[image]);  // rounded down where it matters
  uint64_t last = kNoKey - 1;
  if (wanted < 1.0) {
    last = 0;  // which no key is
  } else if (wanted < work.candidates[image]) {
    last = select_key(keys, num_anchors, static_cast<int>(wanted), selection);
  }
  for (int k = 0; k < RankKeys::kHeld; ++k)
    if (RankKeys::anchor(k) < num_anchors) mask[first_row + RankKeys::anchor(k)] = keys.held_key(k) <= last;
  for (int64_t i = RankKeys::kRest + threadIdx.x; i < num_anchors; i += kImageThreads)
    mask[first_row + i] = keys(i) <= last;
}

template __global__ void rank_losses_kernel<float>(MineInputs, MineOptions, Workspace);
template __global__ void rank_losses_kernel<Half>(MineInputs, MineOptions, Workspace);
template __global__ void rank_losses_kernel<BFloat16>(MineInputs, MineOptions, Workspace);
template __global__ void rank_logits_kernel<float>(MineInputs, MineOptions, Workspace);
template __global__ void rank_logits_kernel<Half>(MineInputs, MineOptions, Workspace);
template __global__ void rank_logits_kernel<BFloat16>(MineInputs, MineOptions, Workspace);

}  // namespace

#if !defined(__CUDACC_RTC__)

namespace {

// Lays the workspace out from `memory` on; returns the bytes it takes.
int64_t lay_out(const MineInputs& in, char* memory, Workspace* work) {
  Layout layout(memory);
  work->positives = layout.part<int>(2 * in.batch);
  work->candidates = work->positives == nullptr ? nullptr : work->positives + in.batch;
  work->ranks = layout.part<uint32_t>(in.batch * in.num_anchors);
  return layout.bytes();
}

}  // namespace

std::string mine_limits(const MineInputs& in, const MineOptions&) {
  return exceeded({{"the batch size", in.batch, kMaxBatch},
                   {"the number of anchors", in.num_anchors, MineLimits::kMaxAnchors},
                   {"the number of classes", in.num_classes, MineLimits::kMaxClasses}},
                  "CUDA");
}

int64_t mine_workspace_bytes(const MineInputs& in, const MineOptions&) {
  Workspace work;
  return lay_out(in, nullptr, &work);
}

void mine(const MineInputs& in, const MineOptions& options, const MineOutputs& out, void* workspace, Stream stream) {
  if (in.batch == 0 || in.num_anchors == 0) return;
  Workspace work;
  lay_out(in, static_cast<char*>(workspace), &work);
  const auto images = static_cast<unsigned>(in.batch);
  const dim3 grid(static_cast<unsigned>((in.num_anchors + kThreads - 1) / kThreads), images);
  memset_async(work.positives, 0, 2 * in.batch * sizeof(int), stream);
  dispatch(in.type, [&](auto element) {
    using T = decltype(element);
    if (in.num_classes == 0)
      launch("rank_losses_kernel", rank_losses_kernel<T>, grid, dim3(kThreads), 0, stream, in, options, work);
    else
      launch("rank_logits_kernel", rank_logits_kernel<T>, grid, dim3(kThreads), 0, stream, in, options, work);
  });
  launch("select_negatives_kernel", select_negatives_kernel, dim3(images), dim3(kImageThreads), 0, stream,
         in.num_anchors, options.negative_ratio, work, out.mask);
}

#endif

}  // namespace refinedet::cuda
