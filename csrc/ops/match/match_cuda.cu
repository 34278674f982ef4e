// match on the GPU in two kernels (contract: ops/match/match.h; drawing and costs: docs/kernels/match.md).
#include "ops/match/match_cuda.h"

#include "cuda/block.h"
#include "cuda/layout.h"
#include "cuda/load.h"

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

namespace refinedet::cuda {
namespace {

constexpr int kThreads = 256;       // of match_anchors_kernel: an anchor each
constexpr int kTile = kThreads;     // ground truths in shared memory at once: loaded by a thread each
constexpr int kImageThreads = 512;  // of assign_truths_kernel: a search waits for memory
constexpr int kImageWarps = kImageThreads / kWarpSize;

struct Box {
  Corners corners;
  float area;
};

// The anchors of a warp make a region. They are some cells of a feature map, so it is small, and most ground truths do
// not touch it.
__host__ __device__ inline int64_t num_regions(int64_t num_anchors) {
  return (num_anchors + kWarpSize - 1) / kWarpSize;
}

// Two ways to write a pair that overlaps, whose larger is the better one; 0 stands for no pair. `Offer`: anchors of one
// ground truth, lower ones first. `Claim`: ground truths of one anchor, earlier ones first; larger than any index.
using Offer = unsigned long long;
using Claim = long long;

struct Workspace {
  Offer* wishes;   // [M] best anchor of each ground truth, starts as 0
  float* regions;  // [B,num_regions,4] corners
};

__device__ inline Offer to_offer(float iou, int64_t anchor) {
  return iou > 0.0f ? static_cast<Offer>(float_bits(iou)) << 32 | ~static_cast<uint32_t>(anchor) : 0;
}

__device__ inline int64_t anchor_of(Offer offer) { return ~static_cast<uint32_t>(offer); }

__device__ inline Claim to_claim(Offer offer, int truth) {
  return static_cast<Claim>((offer >> 32) << 32 | ~static_cast<uint32_t>(truth));
}

__device__ inline int truth_of(Claim claim) { return static_cast<int>(~static_cast<uint32_t>(claim)); }

// A box that overlaps nothing.
__device__ inline Box nowhere() {
  const float infinity = bits_float(0x7f800000u);
  return {{infinity, infinity, -infinity, -infinity}, 0.0f};
}

__device__ inline Box to_box(const Corners& corners) { return {corners, area(corners)}; }

__device__ inline Box to_box(Center anchor) {
  const bool usable = finite(anchor.cx) & finite(anchor.cy) & finite(anchor.w) & finite(anchor.h);
  return usable ? to_box(to_corners(anchor)) : nowhere();
}

__device__ inline Box load_truth(const MatchInputs& in, int64_t row) {
  const Corners corners = load_corners(in.gt_boxes, row);
  return finite(corners) ? to_box(corners) : nowhere();
}

__device__ inline Center load_anchor(const MatchInputs& in, int64_t image, int64_t anchor) {
  return load_center(in.anchors, (in.shared_anchors ? 0 : image * in.num_anchors) + anchor);
}

__device__ inline float box_iou(const Box& a, const Box& b) {
  return iou(intersection(a.corners, b.corners), a.area, b.area);
}

__device__ inline bool touch(const Corners& a, const Corners& b) {
  return a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2;  // only saves work: the IoU of others is 0
}

// The ground truths of an image: rows of gt_boxes.
struct Truths {
  int64_t first;
  int count;
};

__device__ inline int64_t clamped(int64_t x, int64_t low, int64_t high) { return x < low ? low : min(x, high); }

__device__ inline Truths truths_of(const MatchInputs& in, int64_t image) {
  const int64_t first = clamped(in.gt_offsets[image], 0, in.num_truths);
  return {first, static_cast<int>(clamped(in.gt_offsets[image + 1], first, in.num_truths) - first)};
}

// The corners of a ground truth of an image; what has no ground truth overlaps nothing.
__device__ inline Corners load_truth_of(const MatchInputs& in, const Truths& truths, int truth) {
  return truth < truths.count ? load_truth(in, truths.first + truth).corners : nowhere().corners;
}

__device__ inline Corners corners_of(const Quad<float>& row) { return {row.x, row.y, row.z, row.w}; }

// Writes what an anchor learns; `truth` is its ground truth within the image, or -1.
__device__ inline void write_row(const MatchInputs& in, Variances v, const MatchOutputs& out, int64_t image,
                                 int64_t index, int64_t first_truth, int truth) {
  const int64_t row = image * in.num_anchors + index;
  out.indices[row] = truth;
  if (truth < 0) {
    out.labels[row] = 0;
    store_row(out.targets, row, 0.0f, 0.0f, 0.0f, 0.0f);
    return;
  }
  const Center anchor = load_anchor(in, image, index);
  const Corners box = load_corners(in.gt_boxes, first_truth + truth);
  out.labels[row] = in.gt_labels[first_truth + truth];
  store_row(out.targets, row, ((box.x1 + box.x2) * 0.5f - anchor.cx) / anchor.w / v.x,
            ((box.y1 + box.y2) * 0.5f - anchor.cy) / anchor.h / v.y, logf((box.x2 - box.x1) / anchor.w) / v.w,
            logf((box.y2 - box.y1) / anchor.h) / v.h);
}

__device__ inline float smaller_over(float x, int lanes) {
  const float other = __shfl_xor_sync(kFullWarp, x, lanes);
  return other < x ? other : x;
}

// Of two numbers, the smallest over a pair of lanes: of the first one where `second` is false, else of the other.
__device__ inline float smaller_over(float a, float b, bool second, int lanes) {
  const float mine = second ? b : a, other = __shfl_xor_sync(kFullWarp, second ? a : b, lanes);
  return other < mine ? other : mine;
}

// The box around the boxes of a warp. In each of the first steps a lane hands on half of its numbers, so that ten
// shuffles do instead of twenty: then eight lanes each have the smallest of one number.
__device__ inline Corners region_of_warp(const Corners& box) {
  const bool high = lane_index() & 16, odd = lane_index() & 8;
  const float first = smaller_over(box.x1, -box.x2, high, 16), second = smaller_over(box.y1, -box.y2, high, 16);
  float smallest = smaller_over(first, second, odd, 8);
  for (int lanes = 4; lanes > 0; lanes /= 2) smallest = smaller_over(smallest, lanes);
  return {__shfl_sync(kFullWarp, smallest, 0), __shfl_sync(kFullWarp, smallest, 8),
          -__shfl_sync(kFullWarp, smallest, 16), -__shfl_sync(kFullWarp, smallest, 24)};
}

// Largest over so many neighbouring lanes.
__device__ inline Offer largest_of_lanes(Offer value, int lanes) {
  for (lanes /= 2; lanes > 0; lanes /= 2) value = max(value, __shfl_xor_sync(kFullWarp, value, lanes));
  return value;
}

// A warp looks for the best of its anchors for several ground truths together: IoUs go through shared memory, a row
// each, and a few lanes share a row. Rows are longer than a warp, so that the lanes meet every memory bank.
struct Rows {
  static constexpr int kCount = 8;
  static constexpr int kLanes = kWarpSize / kCount;
  static constexpr int kSize = kWarpSize + kLanes;

  float ious[kCount * kSize];

  // The best offer of this lane's row, `first_anchor` being the warp's. A row that is not used has none.
  __device__ Offer best(int64_t first_anchor, bool used) const {
    Offer offer = 0;
    if (used) {
      const int first = lane_index() % kLanes;
      const float* const row = ious + lane_index() / kLanes * kSize + first;
      float iou = row[0];
      int best = 0;
      for (int i = kLanes; i < kWarpSize; i += kLanes) {
        const float other = row[i];
        if (other > iou) {
          iou = other;
          best = i;
        }
      }
      offer = to_offer(iou, first_anchor + first + best);
    }
    return largest_of_lanes(offer, kLanes);
  }
};

// One block: 256 anchors of an image and all its ground truths. Writes per-prediction matches, complete, the best
// anchor of each ground truth, and the regions. A warp looks only at ground truths that touch its region.
__global__ void __launch_bounds__(kThreads)
    match_anchors_kernel(MatchInputs in, MatchOptions options, MatchOutputs out, Workspace work) {
  REFINEDET_SHARED(Quad<float>, tile, kTile);  // corners
  REFINEDET_SHARED(Offer, best_of_tile, kTile);
  REFINEDET_SHARED(Rows, rows_of_warps, kThreads / kWarpSize);
  Rows* const rows = rows_of_warps + warp_index();
  const int64_t image = blockIdx.y, anchor = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool inside = anchor < in.num_anchors;
  const Truths truths = truths_of(in, image);
  const Center center = inside ? load_anchor(in, image, anchor) : Center{};  // on its way while the first tile is
  const auto fill = [&](int first) {
    const Corners truth = load_truth_of(in, truths, first + static_cast<int>(threadIdx.x));
    tile[threadIdx.x] = {truth.x1, truth.y1, truth.x2, truth.y2};
    best_of_tile[threadIdx.x] = 0;
  };
  fill(0);
  const Box box = inside ? to_box(center) : nowhere();
  const Corners region = region_of_warp(box.corners);
  if (inside && lane_index() == 0)
    store_corners(work.regions, image * num_regions(in.num_anchors) + anchor / kWarpSize, region);
  float best_iou = 0.0f;
  int best_truth = -1;
  for (int first = 0; first < truths.count; first += kTile) {
    __syncthreads();
    for (int group = 0; group < kTile; group += kWarpSize) {
      if (first + group >= truths.count) break;  // only saves work: the rest of the tile touches nothing
      unsigned touching = __ballot_sync(kFullWarp, touch(region, corners_of(tile[group + lane_index()])));
      while (touching != 0) {
        int own = -1;  // the ground truth of this lane's row
        for (int row = 0; touching != 0 && row < Rows::kCount; ++row, touching &= touching - 1) {
          const int i = group + __ffs(static_cast<int>(touching)) - 1;
          const float value = box_iou(box, to_box(corners_of(tile[i])));
          if (value > best_iou) {
            best_iou = value;
            best_truth = first + i;
          }
          rows->ious[row * Rows::kSize + lane_index()] = value;
          if (lane_index() / Rows::kLanes == row) own = i;
        }
        __syncwarp();
        const Offer offer = rows->best(anchor - lane_index(), own >= 0);
        if (lane_index() % Rows::kLanes == 0 && offer != 0) atomicMax(&best_of_tile[own], offer);
        __syncwarp();
      }
    }
    __syncthreads();
    const int own = first + static_cast<int>(threadIdx.x);
    if (best_of_tile[threadIdx.x] != 0) atomicMax(&work.wishes[truths.first + own], best_of_tile[threadIdx.x]);
    fill(first + kTile);
  }
  if (!inside) return;
  out.ious[image * in.num_anchors + anchor] = best_iou;
  const int truth = best_iou >= options.iou_threshold ? best_truth : -1;
  write_row(in, options.variances, out, image, anchor, truths.first, truth);
}

// Largest of the block's values. `warp_maxima`: one number per warp.
__device__ inline Offer largest_of_block(Offer value, Offer* warp_maxima) {
  value = largest_of_lanes(value, kWarpSize);
  if (lane_index() == 0) warp_maxima[warp_index()] = value;
  __syncthreads();
  return largest_of_lanes(warp_maxima[lane_index() % kImageWarps], kImageWarps);
}

// Of the ground truths whose wish is another's, what this thread knows of the one with the largest IoU.
__device__ inline Claim best_loser(const Offer* wishes, int count, const Claim* claims) {
  Claim best = 0;
  for (int g = threadIdx.x; g < count; g += kImageThreads) {
    if (wishes[g] == 0) continue;
    const Claim claim = to_claim(wishes[g], g);
    if (claims[anchor_of(wishes[g])] != claim) best = max(best, claim);
  }
  return best;
}

// This thread's best anchor that is free or whose ground truth has to yield to this one. Whole warps take 32 regions,
// then the anchors of those that the ground truth touches: neighbours mostly, so neighbours go to different warps.
// `regions` are the image's.
__device__ inline Offer best_obtainable(const MatchInputs& in, int64_t image, const Box& box, int truth,
                                        const float* regions, const Claim* claims) {
  Offer best = 0;
  for (int64_t first = warp_index(); first < num_regions(in.num_anchors); first += kImageThreads) {
    const int64_t own = first + lane_index() * kImageWarps;
    const bool touches = own < num_regions(in.num_anchors) && touch(load_corners(regions, own), box.corners);
    for (unsigned touching = __ballot_sync(kFullWarp, touches); touching != 0; touching &= touching - 1) {
      const int64_t region = first + (__ffs(static_cast<int>(touching)) - 1) * kImageWarps;
      const int64_t anchor = region * kWarpSize + lane_index();
      if (anchor >= in.num_anchors) continue;
      const Offer offer = to_offer(box_iou(to_box(load_anchor(in, image, anchor)), box), anchor);
      if (offer > best && claims[anchor] < to_claim(offer, truth)) best = offer;
    }
  }
  return best;
}

// One block: an image. Greedy bipartite matching, as deferred acceptance: each ground truth wishes its best anchor,
// which takes the best of those who do; a loser wishes its best anchor that would take it, whose ground truth may lose
// it for that. All rank pairs by IoU, so what comes out is the greedy matching. An anchor's claim is in `indices` until
// the end, over the index of its per-prediction match, which it outranks.
__global__ void __launch_bounds__(kImageThreads, 1)  // 1 per multiprocessor: else registers spill on sm_100
    assign_truths_kernel(MatchInputs in, Variances variances, MatchOutputs out, Workspace work) {
  REFINEDET_SHARED(Offer, losers, kImageThreads / kWarpSize);
  REFINEDET_SHARED(Offer, offers, kImageThreads / kWarpSize);
  const int64_t image = blockIdx.x;
  const Truths truths = truths_of(in, image);
  Offer* const wishes = work.wishes + truths.first;
  const float* const regions = work.regions + 4 * image * num_regions(in.num_anchors);
  Claim* const claims = reinterpret_cast<Claim*>(out.indices + image * in.num_anchors);
  bool contested = false;
  for (int g = threadIdx.x; g < truths.count; g += kImageThreads) {
    if (wishes[g] == 0) continue;
    const Claim before = atomicMax(&claims[anchor_of(wishes[g])], to_claim(wishes[g], g));
    contested = contested || before > MatchLimits::kMaxTruths;  // which no index is
  }
  // Also makes the claims visible to the search for losers.
  bool settled = !__syncthreads_or(contested);
  while (!settled) {
    // The best loser first: it is seldom displaced again, so there are few more searches than losers.
    const Offer loser = largest_of_block(best_loser(wishes, truths.count, claims), losers);
    if (loser == 0) break;
    const int g = truth_of(static_cast<Claim>(loser));
    const Box box = load_truth(in, truths.first + g);
    const Offer wish = largest_of_block(best_obtainable(in, image, box, g, regions, claims), offers);
    if (threadIdx.x == 0) {
      wishes[g] = wish;
      if (wish != 0) claims[anchor_of(wish)] = to_claim(wish, g);
    }
    __syncthreads();
  }
  for (int g = threadIdx.x; g < truths.count; g += kImageThreads) {
    if (wishes[g] == 0) continue;
    write_row(in, variances, out, image, anchor_of(wishes[g]), truths.first, g);
  }
}

}  // namespace

#if !defined(__CUDACC_RTC__)

namespace {

// Lays the workspace out from `memory` on; returns the bytes it takes.
int64_t lay_out(const MatchInputs& in, char* memory, Workspace* work) {
  Layout layout(memory);
  work->wishes = layout.part<Offer>(in.num_truths);
  work->regions = layout.part<float>(4 * in.batch * num_regions(in.num_anchors));
  return layout.bytes();
}

}  // namespace

std::string match_limits(const MatchInputs& in, const MatchOptions&) {
  return exceeded({{"the batch size", in.batch, kMaxBatch},
                   {"the number of anchors", in.num_anchors, MatchLimits::kMaxAnchors},
                   {"the number of ground truths", in.num_truths, MatchLimits::kMaxTruths}},
                  "CUDA");
}

int64_t match_workspace_bytes(const MatchInputs& in, const MatchOptions&) {
  Workspace work;
  return lay_out(in, nullptr, &work);
}

void match(const MatchInputs& in, const MatchOptions& options, const MatchOutputs& out, void* workspace,
           Stream stream) {
  if (in.batch == 0 || in.num_anchors == 0) return;
  Workspace work;
  lay_out(in, static_cast<char*>(workspace), &work);
  const auto images = static_cast<unsigned>(in.batch);
  const auto blocks = static_cast<unsigned>((in.num_anchors + kThreads - 1) / kThreads);
  if (in.num_truths > 0) memset_async(work.wishes, 0, in.num_truths * sizeof(Offer), stream);
  launch("match_anchors_kernel", match_anchors_kernel, dim3(blocks, images), dim3(kThreads), 0, stream, in, options,
         out, work);
  if (in.num_truths > 0)
    launch("assign_truths_kernel", assign_truths_kernel, dim3(images), dim3(kImageThreads), 0, stream, in,
           options.variances, out, work);
}

#endif

}  // namespace refinedet::cuda
