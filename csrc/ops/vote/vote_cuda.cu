// vote on the GPU in three kernels (contract: ops/vote/vote.h; drawing and costs: docs/kernels/vote.md).
//
// Rows are gathered class by class, best first. Then
//   find_tops_kernel       a block walks a class, tile by tile, and says for every box which top it joins
//   merge_clusters_kernel  a warp per row: a top collects its cluster in rank order, on the whole GPU
#include "ops/vote/vote_cuda.h"

#include "cuda/layout.h"
#include "cuda/load.h"
#include "cuda/suppress.h"

namespace refinedet::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kWalkThreads = 512;  // of a block of find_tops_kernel, which has a class to itself
constexpr int kWalkWarps = kWalkThreads / kWarpSize;
constexpr int kNone = 0x7fffffff;  // no top

// The score of a row that is dropped, and of one that nothing comes out of.
__device__ float nothing() { return bits_float(0x7fc00000u); }

// The rows of an image by label ascending, then by rank.
struct Order {
  const int64_t *by_score, *by_label;
  int64_t num_boxes;

  __device__ int64_t row(int64_t image, int64_t place) const {
    const int64_t first = image * num_boxes;
    return first + by_score[first + by_label[first + place]];
  }
};

struct Box {
  Corners corners;
  float area;
  int64_t label;  // 0: no box
};

__device__ float pixel_of(const VoteOptions& options) { return options.official ? 1.0f : 0.0f; }

__device__ Box make_box(Corners corners, int64_t label, const VoteOptions& options) {
  return {corners, area(corners, pixel_of(options)), label};
}

// any_iou(intersection(..), ..) of box_math.h, of boxes that are finite: then the hardware's minimum and maximum give
// the same.
__device__ float iou_of(const Box& a, const Box& b, const VoteOptions& options) {
  const float width = fminf(a.corners.x2, b.corners.x2) - fmaxf(a.corners.x1, b.corners.x1) + pixel_of(options);
  const float height = fminf(a.corners.y2, b.corners.y2) - fmaxf(a.corners.y1, b.corners.y1) + pixel_of(options);
  return any_iou(fmaxf(width, 0.0f) * fmaxf(height, 0.0f), a.area, b.area);
}

__device__ bool joins(const Box& box, const Box& top, const VoteOptions& options) {
  return box.label == top.label && iou_of(box, top, options) >= options.iou_threshold;
}

// Of all images at first, then of one.
struct Workspace {
  float* corners;     // [B,N,4] in order
  float* scores;      // [B,N] in order; NaN: the row is dropped
  int64_t* labels;    // [B,N] in order
  int* tops;          // [B,N] place of the top whose cluster the box is in
  float* found;       // [B,N,4] corners of the tops; those of a block from the place on where its first class begins
  int64_t* found_in;  // [B,N] their labels
  int* found_at;      // [B,N] their places

  __device__ Workspace of_image(int64_t image, int64_t num_boxes) const {
    const int64_t first = image * num_boxes;
    return {corners + 4 * first, scores + first,   labels + first,  tops + first,
            found + 4 * first,   found_in + first, found_at + first};
  }
};

// One thread: a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const T* boxes, const float* scores, const int64_t* labels, Order order, Workspace work) {
  const int64_t place = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (place >= order.num_boxes) return;
  const int64_t row = order.row(blockIdx.y, place), to = blockIdx.y * order.num_boxes + place;
  const Corners box = load_corners(boxes, row);
  const float score = scores[row];
  const int64_t label = labels[row];
  const bool usable = (label > 0) & finite(box);
  store_corners(work.corners, to, box);
  work.scores[to] = usable ? score : nothing();
  work.labels[to] = label;
  work.tops[to] = kNone;
}

// The classes that begin in a tile: from a place on, up to a label. Without any the place is -1.
struct Walk {
  int64_t begin, last_label;
};

// Called by whole warps, each for itself.
__device__ Walk classes_of_tile(const Workspace& image, int64_t num_boxes, int64_t first) {
  const auto begins = [&](int64_t place) {
    if (place >= num_boxes || image.labels[place] <= 0) return false;
    return place == 0 || image.labels[place - 1] != image.labels[place];
  };
  const int64_t place = first + lane_index();
  const uint64_t beginnings = ballot_tile(begins(place), begins(place + kWarpSize));
  if (beginnings == 0) return {-1, 0};
  return {first + __ffsll(static_cast<long long>(beginnings)) - 1, image.labels[min(first + kTile, num_boxes) - 1]};
}

// The box at a place of a walk, if it is one.
__device__ Box candidate(const Workspace& image, int64_t num_boxes, int64_t place, int64_t last_label,
                         const VoteOptions& options) {
  if (place >= num_boxes) return {};
  const Corners corners = load_corners(image.corners, place);  // the loads do not wait for each other
  const float score = image.scores[place];
  const int64_t label = image.labels[place];
  const bool used = (score == score) & (label <= last_label);
  return make_box(corners, used ? label : 0, options);
}

// A block's shared memory for a walk.
struct Tile {
  Box boxes[kTile];
  uint64_t rows[kTile];          // whom a box would join, and also who would join it, for both are the same
  int found[kWalkWarps][kTile];  // the first top before the tile, of those that a warp has looked at
  Box tops[kWalkWarps][kWarpSize];
};

// Numbers of tops of a walk; kNone if there is none.
struct Joined {
  int low, high;
};

// The first tops that two boxes join, of those that this warp looks at: every sixteenth one, fetched 32 at once.
__device__ Joined first_joined(const Workspace& image, const Walk& walk, int count, const Box& low, const Box& high,
                               const VoteOptions& options, Box* tops) {
  Joined joined{kNone, kNone};
  for (int first = warp_index(); first < count; first += kWalkThreads) {
    const int fetched = first + kWalkWarps * lane_index();
    const int64_t from = walk.begin + fetched;
    tops[lane_index()] =
        fetched < count ? make_box(load_corners(image.found, from), image.found_in[from], options) : Box{};
    __syncwarp();
    int turns = (count - first + kWalkWarps - 1) / kWalkWarps;
    if (turns > kWarpSize) turns = kWarpSize;
    for (int turn = 0; turn < turns; ++turn) {
      const Box top = tops[turn];
      if (joined.low == kNone && joins(low, top, options)) joined.low = first + kWalkWarps * turn;
      if (joined.high == kNone && joins(high, top, options)) joined.high = first + kWalkWarps * turn;
    }
    __syncwarp();
  }
  return joined;
}

// Writes which top the box at `first` + i has: itself, one of its tile, or the one before it of that number.
__device__ void settle(const Workspace& image, const Walk& walk, int64_t first, int i, const Box& box, int number,
                       int count, uint64_t chosen, uint64_t row) {
  if (box.label == 0) return;
  int64_t top = first + i;
  if (chosen >> i & 1) {
    const int64_t to = walk.begin + count + __popcll(chosen & bits_below(i));
    store_corners(image.found, to, box.corners);
    image.found_in[to] = box.label;
    image.found_at[to] = static_cast<int>(top);
  } else if (number == kNone) {
    top = first + __ffsll(static_cast<long long>(row & chosen)) - 1;
  } else {
    top = image.found_at[walk.begin + number];
  }
  image.tops[first + i] = static_cast<int>(top);
}

// One block: the classes that begin in a tile. It lists their tops where nobody else's can be.
__global__ void __launch_bounds__(kWalkThreads)
    find_tops_kernel(Workspace all, int64_t num_boxes, VoteOptions options) {
  REFINEDET_SHARED(Tile, tile, 1);
  const int lane = lane_index(), warp = warp_index();
  const Workspace image = all.of_image(blockIdx.y, num_boxes);
  const Walk walk = classes_of_tile(image, num_boxes, int64_t{blockIdx.x} * kTile);
  if (walk.begin == -1) return;
  int count = 0;  // of tops
  for (int64_t first = walk.begin; first < num_boxes; first += kTile) {
    if (image.labels[first] > walk.last_label) break;  // only saves work: there is no candidate beyond
    const Box low = candidate(image, num_boxes, first + lane, walk.last_label, options);
    const Box high = candidate(image, num_boxes, first + lane + kWarpSize, walk.last_label, options);
    if (warp == 0) tile->boxes[lane] = low;
    if (warp == 1) tile->boxes[lane + kWarpSize] = high;
    __syncthreads();
    Joined joined = first_joined(image, walk, count, low, high, options, tile->tops[warp]);
    tile->found[warp][lane] = joined.low;
    tile->found[warp][lane + kWarpSize] = joined.high;
    for (int i = warp; i < kTile; i += kWalkWarps) {
      const Box row = tile->boxes[i];
      const uint64_t word = ballot_tile(joins(low, row, options), joins(high, row, options));
      if (lane == 0) tile->rows[i] = word;
    }
    __syncthreads();
    for (int w = 0; w < kWalkWarps; ++w) {
      joined.low = min(joined.low, tile->found[w][lane]);
      joined.high = min(joined.high, tile->found[w][lane + kWarpSize]);
    }
    const uint64_t open = ballot_tile(low.label != 0 && joined.low == kNone, high.label != 0 && joined.high == kNone);
    const uint64_t chosen = pick_greedily(tile->rows, open);
    if (warp == 0) settle(image, walk, first, lane, low, joined.low, count, chosen, tile->rows[lane]);
    const int upper = lane + kWarpSize;
    if (warp == 1) settle(image, walk, first, upper, high, joined.high, count, chosen, tile->rows[upper]);
    count += __popcll(chosen);
  }
}

// The mean of the cluster whose top is at a place. A warp looks at 32 rows of the class at once and adds up in order.
__device__ Corners mean_of_cluster(const Workspace& image, int64_t num_boxes, int64_t top, Corners box) {
  const int64_t label = image.labels[top];
  Ballot sum = ballot_of(box, image.scores[top]);
  bool alone = true;
  for (int64_t first = top + 1;; first += kWarpSize) {
    const int64_t place = first + lane_index();
    const bool same_class = place < num_boxes && image.labels[place] == label;
    const bool member = same_class && image.tops[place] == top;
    Ballot own{};
    if (member) own = ballot_of(load_corners(image.corners, place), image.scores[place]);
    const unsigned members = __ballot_sync(kFullWarp, member);
    if (members != 0) alone = false;
    for (unsigned rest = members; rest != 0; rest &= rest - 1) {
      const int lane = __ffs(static_cast<int>(rest)) - 1;
      const auto theirs = [&](float value) { return __shfl_sync(kFullWarp, value, lane); };
      sum = sum + Ballot{theirs(own.x1), theirs(own.y1), theirs(own.x2), theirs(own.y2), theirs(own.weight)};
    }
    if (__ballot_sync(kFullWarp, same_class) != kFullWarp) break;
  }
  return alone ? box : elected(sum, box);
}

// One warp: a row, and what comes out of it.
__global__ void __launch_bounds__(kThreads)
    merge_clusters_kernel(Workspace all, Order order, VoteOptions options, VoteOutputs out) {
  const int64_t place = int64_t{blockIdx.x} * kWarps + warp_index();
  if (place >= order.num_boxes) return;
  const Workspace image = all.of_image(blockIdx.y, order.num_boxes);
  const int64_t row = order.row(blockIdx.y, place);
  const float score = image.scores[place];
  Corners box{};
  float found = nothing();
  if (image.tops[place] == place) {
    box = mean_of_cluster(image, order.num_boxes, place, load_corners(image.corners, place));
    found = score;
  } else if (options.soft && score == score) {
    const auto box_at = [&](int64_t at) { return make_box(load_corners(image.corners, at), 1, options); };
    const Box own = box_at(place), top = box_at(image.tops[place]);
    const float decayed = score * (1.0f - iou_of(own, top, options));
    if (decayed >= options.score_threshold) {
      box = own.corners;
      found = decayed;
    }
  }
  if (lane_index() != 0) return;
  store_corners(out.found_boxes, row, box);
  out.found_scores[row] = found;
}

#define INSTANTIATE(T) \
  template __global__ void gather_rows_kernel(const T*, const float*, const int64_t*, Order, Workspace)
INSTANTIATE(float);
INSTANTIATE(Half);
INSTANTIATE(BFloat16);
#undef INSTANTIATE

}  // namespace

#if !defined(__CUDACC_RTC__)

namespace {

// Lays the workspace out from `memory` on; returns the bytes it takes.
int64_t lay_out(int64_t count, char* memory, Workspace* work) {
  Layout layout(memory);
  work->corners = layout.part<float>(4 * count);
  work->scores = layout.part<float>(count);
  work->tops = layout.part<int>(count);
  work->found = layout.part<float>(4 * count);
  work->found_in = layout.part<int64_t>(count);
  work->found_at = layout.part<int>(count);
  work->labels = layout.part<int64_t>(count);  // last: who reads beyond them leaves the workspace, and tests notice
  return layout.bytes();
}

}  // namespace

std::string vote_limits(const VoteInputs& in, const VoteOptions&) {
  return exceeded(
      {{"the batch size", in.batch, kMaxBatch}, {"the number of boxes", in.num_boxes, VoteLimits::kMaxBoxesCuda}},
      "CUDA");
}

int64_t vote_workspace_bytes(const VoteInputs& in, const VoteOptions&) {
  Workspace work;
  return lay_out(in.batch * in.num_boxes, nullptr, &work);
}

void vote(const VoteInputs& in, const VoteOptions& options, const VoteOutputs& out, void* workspace, Stream stream) {
  if (in.batch == 0 || in.num_boxes == 0) return;
  Workspace work;
  lay_out(in.batch * in.num_boxes, static_cast<char*>(workspace), &work);
  const Order order{in.by_score, in.by_label, in.num_boxes};
  const dim3 block(kThreads), walk_block(kWalkThreads);
  const auto grid = [&](int64_t rows_of_block) {
    return dim3(static_cast<unsigned>((in.num_boxes + rows_of_block - 1) / rows_of_block),
                static_cast<unsigned>(in.batch));
  };
  dispatch(in.type, [&](auto element) {
    using T = decltype(element);
    launch("gather_rows_kernel", gather_rows_kernel<T>, grid(kThreads), block, 0, stream,
           static_cast<const T*>(in.boxes), in.scores, in.labels, order, work);
  });
  launch("find_tops_kernel", find_tops_kernel, grid(kTile), walk_block, 0, stream, work, in.num_boxes, options);
  launch("merge_clusters_kernel", merge_clusters_kernel, grid(kWarps), block, 0, stream, work, order, options, out);
}

#endif

}  // namespace refinedet::cuda
