// nms on the GPU (contract: ops/nms/nms.h; drawing and costs: docs/kernels/nms.md).
//
// Boxes are gathered in the order of their scores, in tiles of 64, and suppressed band by band of 64 tiles:
//   compare_band_kernel    all pairs of the band, on the whole GPU: a bit per pair, 2 MiB whatever N is
//   resolve_band_kernel    one block walks the band tile by tile and lists what is kept
//   suppress_rest_kernel   the kept boxes of the band meet the candidates after it, on the whole GPU
#include "ops/nms/nms_cuda.h"

#include "cuda/layout.h"
#include "cuda/load.h"
#include "cuda/suppress.h"

namespace refinedet::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBandTiles = 64;  // 4096 boxes: what one block resolves in about the time the others need to compare them
constexpr int kGroups = kThreads / kBandTiles;

struct Box {
  Corners corners;
  float area;
  int64_t label;
};

__device__ bool suppresses(const Box& kept, const Box& candidate, float threshold) {
  return kept.label == candidate.label &&
         overlaps(intersection(kept.corners, candidate.corners), kept.area, candidate.area, threshold);
}

struct Boxes {
  float* corners;
  int64_t* labels;

  __device__ Box operator()(int64_t i) const {
    const int64_t label = labels[i];  // on its way before the area waits for the corners
    const Corners box = load_corners(corners, i);
    return {box, area(box), label};
  }

  __device__ void store(int64_t i, Corners box, int64_t label) const {
    store_corners(corners, i, box);
    labels[i] = label;
  }
};

struct Workspace {
  Boxes candidates;      // best first; the last tile is filled up with dead ones
  uint64_t* suppressed;  // a word per tile
  Boxes kept;            // of the band, and empty ones: kept boxes are read by whole warps, beyond the last
  int* kept_count;
  uint64_t* rows;  // [64 * tiles, tiles] of the band: whom a box suppresses
};

// One warp: a tile of candidates. NaN scores and boxes that are not finite start suppressed.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_boxes_kernel(const T* boxes, const float* scores, const int64_t* labels, const int64_t* order,
                        int64_t num_boxes, int64_t num_tiles, Workspace work) {
  const int64_t tile = int64_t{blockIdx.x} * kWarps + warp_index();
  if (tile >= num_tiles) return;
  const int64_t first = tile * kTile + lane_index();
  bool dead[2];
  Corners box[2] = {};
  int64_t label[2] = {};
  for (int half = 0; half < 2; ++half) {
    const int64_t i = first + half * kWarpSize;
    dead[half] = true;
    if (i < num_boxes) {
      const int64_t source = order[i];
      const float score = scores[source];  // no &&: the loads do not wait for each other
      box[half] = load_corners(boxes, source);
      if (labels != nullptr) label[half] = labels[source];
      dead[half] = !finite(box[half]) | (score != score);
    }
  }
  for (int half = 0; half < 2; ++half) work.candidates.store(first + half * kWarpSize, box[half], label[half]);
  const uint64_t word = ballot_tile(dead[0], dead[1]);
  if (lane_index() == 0) work.suppressed[tile] = word;
}

// One block: two tiles of the band, the one of the rows not after the other.
__global__ void __launch_bounds__(kThreads)
    compare_band_kernel(Workspace work, int64_t first_tile, int num_tiles, float threshold) {
  REFINEDET_SHARED(Box, rows, kTile);
  const int row_tile = blockIdx.y, column_tile = blockIdx.x;
  if (row_tile > column_tile) return;  // only saves work: nobody reads words before the diagonal
  const int64_t first_row = (first_tile + row_tile) * kTile, first_column = (first_tile + column_tile) * kTile;
  const Box low = work.candidates(first_column + lane_index());
  const Box high = work.candidates(first_column + kWarpSize + lane_index());
  if (threadIdx.x < kTile) rows[threadIdx.x] = work.candidates(first_row + threadIdx.x);
  __syncthreads();
  constexpr int kRows = kTile / kWarps;
  const int first = warp_index() * kRows;
  uint64_t own = 0;  // word of the row `lane`
  for (int i = 0; i < kRows; ++i) {
    const Box box = rows[first + i];
    const uint64_t word = ballot_tile(suppresses(box, low, threshold), suppresses(box, high, threshold));
    if (lane_index() == i) own = word;
  }
  if (lane_index() < kRows) work.rows[(row_tile * kTile + first + lane_index()) * num_tiles + column_tile] = own;
}

// The candidates of a band that are kept: a word per tile, and how many are before it.
struct Survivors {
  uint64_t* words;
  int* before;

  __device__ bool has(int i) const { return words[i / kTile] >> i % kTile & 1; }

  __device__ int place(int i) const { return before[i / kTile] + __popcll(words[i / kTile] & bits_below(i % kTile)); }
};

// Lists what is kept of a band, for the caller and for suppress_rest_kernel. Loads several boxes before it stores the
// first: one block alone has few threads to hide the latency of memory behind.
__device__ void list_kept(const Workspace& work, const int64_t* order, int64_t first_candidate, int count,
                          const Survivors& survivors, int64_t* kept) {
  constexpr int kLoads = 4;
  for (int first = threadIdx.x; first < count; first += kLoads * kThreads) {
    Corners boxes[kLoads];
    int64_t labels[kLoads], sources[kLoads];
    for (int load = 0; load < kLoads; ++load) {
      const int i = first + load * kThreads;
      if (i >= count || !survivors.has(i)) continue;
      boxes[load] = load_corners(work.candidates.corners, first_candidate + i);
      labels[load] = work.candidates.labels[first_candidate + i];
      sources[load] = order[first_candidate + i];
    }
    for (int load = 0; load < kLoads; ++load) {
      const int i = first + load * kThreads;
      if (i >= count || !survivors.has(i)) continue;
      work.kept.store(survivors.place(i), boxes[load], labels[load]);
      kept[survivors.place(i)] = sources[load];
    }
  }
}

// One block: the band. Every thread has a column of tiles and a quarter of the rows. It fetches the words of the next
// tile as soon as those of the last are used, before it is known which of them count: they arrive during the walk.
__global__ void __launch_bounds__(kThreads)
    resolve_band_kernel(Workspace work, const int64_t* order, int64_t first_tile, int num_tiles, NmsOutputs out) {
  REFINEDET_SHARED(unsigned long long, suppressed, kBandTiles);
  REFINEDET_SHARED(uint64_t, diagonals, 2 * kTile);  // of this tile and the next
  REFINEDET_SHARED(uint64_t, kept_words, kBandTiles);
  REFINEDET_SHARED(int, kept_before, kBandTiles);
  constexpr int kRows = kTile / kGroups;
  const int thread = threadIdx.x, group = thread / kBandTiles;
  const int column = thread % kBandTiles < num_tiles ? thread % kBandTiles : -1;  // none
  if (thread < num_tiles) suppressed[thread] = work.suppressed[first_tile + thread];
  const auto word = [&](int tile, int row, int column) { return work.rows[(tile * kTile + row) * num_tiles + column]; };
  const auto diagonal_word = [&](int tile) {
    return thread < kTile && tile < num_tiles ? word(tile, thread, tile) : 0;
  };
  uint64_t words[kRows];
  const auto fetch = [&](int tile) {
    if (column <= tile) return;
    for (int r = 0; r < kRows; ++r) words[r] = word(tile, group * kRows + r, column);
  };
  if (thread < kTile) diagonals[thread] = diagonal_word(0);
  uint64_t next_diagonal = diagonal_word(1);
  fetch(0);
  int kept = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    __syncthreads();
    const uint64_t chosen = pick_greedily(diagonals + tile % 2 * kTile, ~suppressed[tile]);
    const unsigned rows = static_cast<unsigned>(chosen >> (group * kRows));
    if (column > tile) {
      uint64_t hit = 0;
      for (int r = 0; r < kRows; ++r) hit |= rows >> r & 1 ? words[r] : 0;
      if (hit != 0) atomicOr(&suppressed[column], hit);
    }
    fetch(tile + 1);
    if (thread < kTile) diagonals[(tile + 1) % 2 * kTile + thread] = next_diagonal;
    next_diagonal = diagonal_word(tile + 2);
    if (thread == 0) {
      kept_words[tile] = chosen;
      kept_before[tile] = kept;
    }
    kept += __popcll(chosen);
  }
  const int64_t earlier = first_tile == 0 ? 0 : *out.count;
  __syncthreads();
  list_kept(work, order, first_tile * kTile, num_tiles * kTile, {kept_words, kept_before}, out.kept + earlier);
  if (thread < kTile) work.kept.store(kept + thread, Corners{}, 0);  // overlaps nothing
  if (thread == 0) {
    *work.kept_count = kept;
    *out.count = earlier + kept;
  }
}

// One block: a tile after the band, which meets the kept boxes of the band. A warp has an eighth of them, 32 at once.
__global__ void __launch_bounds__(kThreads) suppress_rest_kernel(Workspace work, int64_t first_tile, float threshold) {
  REFINEDET_SHARED(uint64_t, words, kWarps);
  REFINEDET_SHARED(Box, boxes, kThreads);
  const int64_t tile = first_tile + blockIdx.x;
  const uint64_t before = work.suppressed[tile];
  if (~before == 0) return;
  const Box low = work.candidates(tile * kTile + lane_index());
  const Box high = work.candidates(tile * kTile + kWarpSize + lane_index());
  const int share = (*work.kept_count + kWarps - 1) / kWarps, end = (warp_index() + 1) * share;
  const Box* const own = boxes + warp_index() * kWarpSize;
  bool low_hit = false, high_hit = false;
  for (int first = end - share; first < end; first += kWarpSize) {
    const int in_turn = min(end - first, kWarpSize);  // only saves work: beyond lie another warp's boxes, or empty ones
    boxes[threadIdx.x] = work.kept(first + lane_index());
    __syncwarp();
#pragma unroll 2  // registers, and with them warps, that a multiprocessor lacks then
    for (int k = 0; k < in_turn; ++k) {
      low_hit = low_hit || suppresses(own[k], low, threshold);
      high_hit = high_hit || suppresses(own[k], high, threshold);
    }
    __syncwarp();
  }
  const uint64_t word = ballot_tile(low_hit, high_hit);
  if (lane_index() == 0) words[warp_index()] = word;
  __syncthreads();
  if (threadIdx.x != 0) return;
  uint64_t all = before;
  for (int w = 0; w < kWarps; ++w) all |= words[w];
  work.suppressed[tile] = all;
}

#define INSTANTIATE(T)                                                                                          \
  template __global__ void gather_boxes_kernel(const T*, const float*, const int64_t*, const int64_t*, int64_t, \
                                               int64_t, Workspace)
INSTANTIATE(float);
INSTANTIATE(Half);
INSTANTIATE(BFloat16);
#undef INSTANTIATE

}  // namespace

#if !defined(__CUDACC_RTC__)

namespace {

int64_t tiles_of(int64_t num_boxes) { return (num_boxes + kTile - 1) / kTile; }

// Lays the workspace out from `memory` on; returns the bytes it takes.
int64_t lay_out(int64_t num_boxes, char* memory, Workspace* work) {
  Layout layout(memory);
  const int64_t tiles = tiles_of(num_boxes), band = std::min<int64_t>(tiles, kBandTiles);
  const auto boxes = [&](int64_t count) { return Boxes{layout.part<float>(4 * count), layout.part<int64_t>(count)}; };
  work->candidates = boxes(tiles * kTile);
  work->suppressed = layout.part<uint64_t>(tiles);
  work->kept = boxes((band + 1) * kTile);
  work->kept_count = layout.part<int>(1);
  work->rows = layout.part<uint64_t>(band * kTile * band);
  return layout.bytes();
}

}  // namespace

std::string nms_limits(const NmsInputs& in, const NmsOptions&) {
  return exceeded({{"the number of boxes", in.num_boxes, NmsLimits::kMaxBoxesCuda}}, "CUDA");
}

int64_t nms_workspace_bytes(const NmsInputs& in, const NmsOptions&) {
  Workspace work;
  return lay_out(in.num_boxes, nullptr, &work);
}

void nms(const NmsInputs& in, const NmsOptions& options, const NmsOutputs& out, void* workspace, Stream stream) {
  if (in.num_boxes == 0) return memset_async(out.count, 0, sizeof(*out.count), stream);
  Workspace work;
  lay_out(in.num_boxes, static_cast<char*>(workspace), &work);
  const int64_t num_tiles = tiles_of(in.num_boxes);
  const dim3 block(kThreads);
  const auto blocks = [](int64_t count) { return static_cast<unsigned>(count); };
  dispatch(in.type, [&](auto element) {
    using T = decltype(element);
    launch("gather_boxes_kernel", gather_boxes_kernel<T>, dim3(blocks((num_tiles + kWarps - 1) / kWarps)), block, 0,
           stream, static_cast<const T*>(in.boxes), in.scores, in.labels, in.order, in.num_boxes, num_tiles, work);
  });
  for (int64_t first = 0; first < num_tiles; first += kBandTiles) {
    const auto tiles = static_cast<int>(std::min<int64_t>(kBandTiles, num_tiles - first));
    launch("compare_band_kernel", compare_band_kernel, dim3(blocks(tiles), blocks(tiles)), block, 0, stream, work,
           first, tiles, options.iou_threshold);
    launch("resolve_band_kernel", resolve_band_kernel, dim3(1), block, 0, stream, work, in.order, first, tiles, out);
    const int64_t rest = first + tiles;
    if (rest < num_tiles)
      launch("suppress_rest_kernel", suppress_rest_kernel, dim3(blocks(num_tiles - rest)), block, 0, stream, work, rest,
             options.iou_threshold);
  }
}

#endif

}  // namespace refinedet::cuda
