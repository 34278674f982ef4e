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
  int64_t label;
};

__device__ bool suppresses(const Box& kept, const Box& candidate, float threshold) {
  return kept.label == candidate.label && cuda::suppresses(kept.corners, candidate.corners, threshold);
}

struct Boxes {
  float* corners;
  int64_t* labels;

  __device__ Box operator()(int64_t i) const { return {load_corners(corners, i), labels[i]}; }

  __device__ void store(int64_t i, const Box& box) const {
    store_corners(corners, i, box.corners);
    labels[i] = box.label;
  }
};

struct Workspace {
  Boxes candidates;      // best first; the last tile is filled up with dead ones
  uint64_t* suppressed;  // a word per tile
  Boxes kept;            // of the band
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
  bool dead[2];
  for (int half = 0; half < 2; ++half) {
    const int64_t i = tile * kTile + half * kWarpSize + lane_index();
    dead[half] = true;
    Box box{};
    if (i < num_boxes) {
      const int64_t source = order[i];
      box = {load_corners(boxes, source), labels == nullptr ? 0 : labels[source]};
      dead[half] = !finite(box.corners) || scores[source] != scores[source];
    }
    work.candidates.store(i, box);
  }
  const uint64_t word = ballot_tile(dead[0], dead[1]);
  if (lane_index() == 0) work.suppressed[tile] = word;
}

// One block: two tiles of the band, the one of the rows not after the other.
__global__ void __launch_bounds__(kThreads)
    compare_band_kernel(Workspace work, int64_t first_tile, int num_tiles, float threshold) {
  const int row_tile = blockIdx.y, column_tile = blockIdx.x;
  if (row_tile > column_tile) return;  // only saves work: nobody reads words before the diagonal
  const int64_t first_row = (first_tile + row_tile) * kTile, first_column = (first_tile + column_tile) * kTile;
  const Box low = work.candidates(first_column + lane_index());
  const Box high = work.candidates(first_column + kWarpSize + lane_index());
  for (int i = warp_index(); i < kTile; i += kWarps) {
    const Box box = work.candidates(first_row + i);
    const uint64_t word = ballot_tile(suppresses(box, low, threshold), suppresses(box, high, threshold));
    if (lane_index() == 0) work.rows[(row_tile * kTile + i) * num_tiles + column_tile] = word;
  }
}

// One block: the band. Every thread has a column of tiles and a quarter of the rows; it reads them while the tile on
// the diagonal is on its way, before it is known which of them count.
__global__ void __launch_bounds__(kThreads)
    resolve_band_kernel(Workspace work, const int64_t* order, int64_t first_tile, int num_tiles, NmsOutputs out) {
  REFINEDET_SHARED(unsigned long long, suppressed, kBandTiles);
  REFINEDET_SHARED(uint64_t, diagonal, kTile);
  constexpr int kRows = kTile / kGroups;
  const int thread = threadIdx.x, column = thread % kBandTiles, group = thread / kBandTiles;
  if (thread < num_tiles) suppressed[thread] = work.suppressed[first_tile + thread];
  const int64_t kept_before = first_tile == 0 ? 0 : *out.count;
  int kept = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const uint64_t* const rows = work.rows + tile * kTile * num_tiles;
    if (thread < kTile) diagonal[thread] = rows[thread * num_tiles + tile];
    uint64_t words[kRows];
    for (int r = 0; r < kRows; ++r)
      words[r] = column > tile && column < num_tiles ? rows[(group * kRows + r) * num_tiles + column] : 0;
    __syncthreads();
    const uint64_t alive = pick_greedily(diagonal, ~suppressed[tile]);
    uint64_t hit = 0;
    for (int r = 0; r < kRows; ++r) hit |= alive >> (group * kRows + r) & 1 ? words[r] : 0;
    if (hit != 0) atomicOr(&suppressed[column], hit);
    if (thread < kTile && (alive >> thread & 1)) {
      const int64_t candidate = (first_tile + tile) * kTile + thread;
      const int position = kept + __popcll(alive & bits_below(thread));
      work.kept.store(position, work.candidates(candidate));
      out.kept[kept_before + position] = order[candidate];
    }
    kept += __popcll(alive);
    __syncthreads();
  }
  if (thread == 0) {
    *work.kept_count = kept;
    *out.count = kept_before + kept;
  }
}

// One block: a tile after the band, which meets the kept boxes of the band.
__global__ void __launch_bounds__(kThreads) suppress_rest_kernel(Workspace work, int64_t first_tile, float threshold) {
  REFINEDET_SHARED(uint64_t, words, kWarps);
  const int64_t tile = first_tile + blockIdx.x;
  const uint64_t before = work.suppressed[tile];
  if (~before == 0) return;
  const Box low = work.candidates(tile * kTile + lane_index());
  const Box high = work.candidates(tile * kTile + kWarpSize + lane_index());
  const uint64_t word = suppressed_by(work.kept, warp_index(), *work.kept_count, kWarps, low, high, threshold);
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
  work->kept = boxes(band * kTile);
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
