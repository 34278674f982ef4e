// detect on the GPU in three kernels (contract: ops/detect/detect.h; drawing and costs: docs/kernels/detect.md).
#include "ops/detect/detect_cuda.h"

#include "cuda/block.h"
#include "cuda/layout.h"
#include "cuda/load.h"
#include "cuda/softmax.h"
#include "cuda/suppress.h"

namespace refinedet::cuda {
namespace {

constexpr int kThreads = 256;  // of a block; also the anchors of a block of score_anchors_kernel
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kMergeThreads = 512;  // of a block of merge_classes_kernel, which has an image to itself
static_assert(softmax_row_size(DetectLimits::kMaxClasses) <= kTileTerms);

// All written before it is read, but for the counters, which start at 0.
struct Workspace {
  int* candidate_counts;  // [B,C-1]
  uint64_t* candidates;   // [B,C-1,N] descending_key(score, anchor * C + class), in any order
  float* boxes;           // [B,N,4] corners, of the anchors that pass the filter
  int* kept_counts;       // [B]
  uint64_t* kept;         // [B,(C-1) * kept_of_class] keys of the boxes that survive suppression, in any order
};

struct Sizes {
  int64_t num_anchors;
  int num_classes;
  int top_k;          // candidates of a class that enter suppression, at most
  int kept_of_class;  // survivors of a class, at most: worse ones cannot be among the image's best
  int num_rows;       // of the output, per image

  __host__ __device__ int foreground() const { return num_classes - 1; }
};

template <class T>
struct Level {
  const T *arm_loc, *arm_conf, *odm_loc, *odm_conf;
  int64_t first_anchor, num_anchors;
  unsigned first_block;
};

template <class T>
struct Levels {
  Level<T> all[kMaxLevels];
};

// A loop over constant indices: a variable one would copy the levels to every thread's local memory.
template <class T>
__device__ Level<T> level_of_block(const Levels<T>& levels) {
  Level<T> level = levels.all[0];
  for (int i = 1; i < kMaxLevels; ++i)
    if (blockIdx.x >= levels.all[i].first_block) level = levels.all[i];
  return level;
}

template <class T>
__device__ bool is_object(const Level<T>& level, int64_t row, float threshold) {
  if (level.arm_conf == nullptr) return true;
  const float2 logits = load_pair(level.arm_conf, row);
  return objectness(logits.x, logits.y) >= threshold;
}

template <class T>
__device__ Corners decode_anchor(const Level<T>& level, Center anchor, int64_t row, Variances variances) {
  if (level.arm_loc != nullptr) anchor = decode(anchor, load_center(level.arm_loc, row), variances);
  return to_corners(decode(anchor, load_center(level.odm_loc, row), variances));
}

// A tile with the sums of its terms: scores.
struct ScoreTile : SoftmaxTile {
  float* totals;

  __device__ float score(int i, int c) const { return row(i)[c] / totals[i]; }
};

// A thread per anchor sums; ends with a barrier.
__device__ inline void take_totals(const ScoreTile& tile, int num_classes) {
  const int i = threadIdx.x;
  if (i < tile.count) tile.totals[i] = sum_terms(tile.row(i), num_classes);
  __syncthreads();
}

// Appends the candidates of a tile to the lists of their classes. A warp takes a class and reserves its places at once.
__device__ inline void append_candidates(const ScoreTile& tile, int64_t image, int64_t first_anchor, const Sizes& sizes,
                                         float threshold, const Workspace& work) {
  const int lane = lane_index();
  for (int c = 1 + warp_index(); c < sizes.num_classes; c += kWarps) {
    const auto passes = [&](int i) { return i < tile.count && tile.score(i, c) > threshold; };
    int found = 0;
    for (int i = 0; i < tile.count; i += kWarpSize) found += __popc(__ballot_sync(kFullWarp, passes(i + lane)));
    if (found == 0) continue;
    const int64_t list = image * sizes.foreground() + c - 1;
    int place = lane == 0 ? atomicAdd(&work.candidate_counts[list], found) : 0;
    place = __shfl_sync(kFullWarp, place, 0);
    for (int i = lane; i - lane < tile.count; i += kWarpSize) {
      const unsigned ballot = __ballot_sync(kFullWarp, passes(i));
      if (ballot >> lane & 1) {
        const auto flat = static_cast<uint32_t>((first_anchor + tile.anchors[i]) * sizes.num_classes + c);
        work.candidates[list * sizes.num_anchors + place + __popc(ballot & lanes_below(lane))] =
            descending_key(tile.score(i, c), flat);
      }
      place += __popc(ballot);
    }
  }
}

// One block: 256 anchors of one level of one image. Filters them, decodes, compacts and scores what is left.
template <class T>
__global__ void __launch_bounds__(kThreads)
    score_anchors_kernel(Levels<T> levels, const float* anchors, Sizes sizes, DetectOptions options, Workspace work) {
  REFINEDET_SHARED(float, terms, kTileTerms);
  REFINEDET_SHARED(float, totals, kThreads);
  REFINEDET_SHARED(int, survivors, kThreads);
  REFINEDET_SHARED(int, warp_counts, kWarps);
  const Level<T> level = level_of_block(levels);
  const int64_t image = blockIdx.y, first = int64_t{blockIdx.x - level.first_block} * kThreads;
  const int64_t first_row = image * level.num_anchors + first, first_anchor = level.first_anchor + first;
  const int thread = threadIdx.x;
  bool survives = first + thread < level.num_anchors;
  survives = survives && is_object(level, first_row + thread, options.objectness_threshold);
  if (survives) {
    const Center anchor = load_center(anchors, first_anchor + thread);
    const Corners box = decode_anchor(level, anchor, first_row + thread, options.variances);
    survives = finite(box);
    if (survives) store_corners(work.boxes, image * sizes.num_anchors + first_anchor + thread, box);
  }
  const Rank rank = rank_in_block(survives, warp_counts);
  if (survives) survivors[rank.position] = thread;
  __syncthreads();
  const int row_size = softmax_row_size(sizes.num_classes), fit = kTileTerms / row_size;
  for (int s = 0; s < rank.total; s += fit) {
    const ScoreTile tile{{survivors + s, min(rank.total - s, fit), terms, row_size}, totals};
    take_exponentials(tile, level.odm_conf + first_row * sizes.num_classes, sizes.num_classes);
    take_totals(tile, sizes.num_classes);
    append_candidates(tile, image, first_anchor, sizes, options.score_threshold, work);
    __syncthreads();
  }
}

struct KeyList {
  const uint64_t* keys;

  __device__ uint64_t operator()(int64_t i) const { return keys[i]; }
};

// A block's shared memory for suppression.
struct Suppression {
  Corners tile[kTile];
  uint64_t rows[kTile];         // of the tile: whom a candidate suppresses
  uint64_t suppressed[kWarps];  // by the boxes kept before, as far as this warp has looked
};

// Suppresses among the `count` keys, best first, tile by tile. Kept keys move to the front of `keys`; their boxes go to
// `kept`, which has room for `limit`. Returns their number. `boxes` are the image's.
__device__ inline int suppress_keys(uint64_t* keys, int count, Corners* kept, int limit, const float* boxes,
                                    const Sizes& sizes, float threshold, Suppression* shared) {
  const int thread = threadIdx.x, lane = lane_index();
  uint64_t key = 0;
  Corners box{};
  const auto fetch = [&](int first) {  // this thread's candidate of a tile
    if (thread >= kTile) return;       // only saves work: nobody reads what the others would fetch
    if (first + thread >= count) return;
    key = keys[first + thread];
    box = load_corners(boxes, key_index(key) / static_cast<uint32_t>(sizes.num_classes));
  };
  fetch(0);
  int kept_count = 0;
  for (int first = 0; first < count; first += kTile) {
    if (kept_count == limit) break;
    const int in_tile = min(count - first, kTile);
    if (thread < kTile) shared->tile[thread] = box;
    __syncthreads();
    const uint64_t tile_key = key;
    const Corners tile_box = box, low = shared->tile[lane], high = shared->tile[lane + kWarpSize];
    fetch(first + kTile);  // arrives while the tile is compared
    const auto kept_box = [=](int k) { return kept[k]; };
    const uint64_t hit = suppressed_by(kept_box, warp_index(), kept_count, kWarps, low, high, threshold);
    if (lane == 0) shared->suppressed[warp_index()] = hit;
    for (int i = warp_index(); i < in_tile; i += kWarps) {
      const Corners row = shared->tile[i];
      const uint64_t word = ballot_tile(suppresses(row, low, threshold), suppresses(row, high, threshold));
      if (lane == 0) shared->rows[i] = word;
    }
    __syncthreads();
    uint64_t alive = in_tile < kTile ? bits_below(in_tile) : ~uint64_t{0};
    for (int w = 0; w < kWarps; ++w) alive &= ~shared->suppressed[w];
    alive = pick_greedily(shared->rows, alive);
    if (thread < kTile && (alive >> thread & 1)) {
      const int place = kept_count + __popcll(alive & bits_below(thread));
      if (place < limit) {
        kept[place] = tile_box;
        keys[place] = tile_key;
      }
    }
    kept_count = min(kept_count + __popcll(alive), limit);
  }
  return kept_count;
}

// One block: a class of an image. Its best candidates, in order, suppress each other.
__global__ void __launch_bounds__(kThreads) suppress_class_kernel(Sizes sizes, float iou_threshold, Workspace work) {
  REFINEDET_DYNAMIC_SHARED(uint64_t, keys);
  REFINEDET_SHARED(Selection, selection, 1);
  REFINEDET_SHARED(Suppression, suppression, 1);
  REFINEDET_SHARED(int, first_place, 1);
  const int64_t image = blockIdx.y, list = image * sizes.foreground() + blockIdx.x;
  const KeyList candidates{work.candidates + list * sizes.num_anchors};
  const int found = gather_best(candidates, work.candidate_counts[list], sizes.top_k, keys, selection);
  Corners* const kept = reinterpret_cast<Corners*>(keys + power_of_two_at_least(sizes.top_k));
  const float* const boxes = work.boxes + 4 * image * sizes.num_anchors;
  const int kept_count =
      suppress_keys(keys, found, kept, sizes.kept_of_class, boxes, sizes, iou_threshold, suppression);
  if (threadIdx.x == 0) *first_place = atomicAdd(&work.kept_counts[image], kept_count);
  __syncthreads();
  uint64_t* const out = work.kept + image * sizes.foreground() * sizes.kept_of_class + *first_place;
  for (int i = threadIdx.x; i < kept_count; i += kThreads) out[i] = keys[i];
}

// One block: an image. The best rows of all classes, and padding.
__global__ void __launch_bounds__(kMergeThreads) merge_classes_kernel(Sizes sizes, Workspace work, DetectOutputs out) {
  REFINEDET_DYNAMIC_SHARED(uint64_t, keys);
  REFINEDET_SHARED(Selection, selection, 1);
  const int64_t image = blockIdx.x;
  const KeyList kept{work.kept + image * sizes.foreground() * sizes.kept_of_class};
  const int found = gather_best(kept, work.kept_counts[image], sizes.num_rows, keys, selection);
  for (int i = threadIdx.x; i < sizes.num_rows; i += kMergeThreads) {
    const int64_t row = image * sizes.num_rows + i;
    const bool used = i < found;
    const uint32_t flat = used ? key_index(keys[i]) : 0, classes = static_cast<uint32_t>(sizes.num_classes);
    const int64_t anchor = flat / classes;
    store_corners(out.boxes, row, used ? load_corners(work.boxes, image * sizes.num_anchors + anchor) : Corners{});
    out.scores[row] = used ? key_score(keys[i]) : 0.0f;
    out.labels[row] = used ? flat % classes : 0;
    out.indices[row] = used ? anchor : -1;
  }
  if (threadIdx.x == 0) out.counts[image] = found;
}

template __global__ void score_anchors_kernel(Levels<float>, const float*, Sizes, DetectOptions, Workspace);
template __global__ void score_anchors_kernel(Levels<Half>, const float*, Sizes, DetectOptions, Workspace);
template __global__ void score_anchors_kernel(Levels<BFloat16>, const float*, Sizes, DetectOptions, Workspace);

}  // namespace

#if !defined(__CUDACC_RTC__)

namespace {

Sizes sizes_of(const DetectInputs& in, const DetectOptions& options) {
  const int64_t top_k = std::min(options.top_k, in.num_anchors);
  return {in.num_anchors, static_cast<int>(in.num_classes), static_cast<int>(top_k),
          static_cast<int>(std::min(top_k, options.keep_top_k)), static_cast<int>(options.keep_top_k)};
}

// Lays the workspace out from `memory` on; returns the bytes it takes.
int64_t lay_out(int64_t images, const Sizes& sizes, char* memory, Workspace* work) {
  Layout layout(memory);
  const int64_t lists = images * sizes.foreground();
  int* const counters = layout.part<int>(lists + images);
  work->candidate_counts = counters;
  work->kept_counts = counters == nullptr ? nullptr : counters + lists;
  work->boxes = layout.part<float>(images * sizes.num_anchors * 4);
  work->kept = layout.part<uint64_t>(lists * sizes.kept_of_class);
  work->candidates = layout.part<uint64_t>(lists * sizes.num_anchors);
  return layout.bytes();
}

int64_t blocks_for(int64_t num_anchors) { return (num_anchors + kThreads - 1) / kThreads; }

template <class T>
Levels<T> to_levels(const DetectInputs& in, unsigned* num_blocks) {
  Levels<T> levels;
  int64_t anchors = 0, blocks = 0;
  for (int i = 0; i < kMaxLevels; ++i) {
    const DetectLevel level = i < in.num_levels ? in.levels[i] : DetectLevel{};
    levels.all[i] = {static_cast<const T*>(level.arm_loc),
                     static_cast<const T*>(level.arm_conf),
                     static_cast<const T*>(level.odm_loc),
                     static_cast<const T*>(level.odm_conf),
                     anchors,
                     level.num_anchors,
                     static_cast<unsigned>(blocks)};
    anchors += level.num_anchors;
    blocks += blocks_for(level.num_anchors);
  }
  *num_blocks = static_cast<unsigned>(blocks);
  return levels;
}

}  // namespace

std::string detect_limits(const DetectInputs& in, const DetectOptions& options) {
  using Most = DetectLimits;
  return exceeded({{"the batch size", in.batch, kMaxBatch},
                   {"the number of classes", in.num_classes, Most::kMaxClasses},
                   {"the number of anchors", in.num_anchors, Most::kMaxScores / std::max<int64_t>(in.num_classes, 1)},
                   // No list of candidates is longer than there are anchors.
                   {"top_k", in.num_anchors > Most::kMaxTopK ? options.top_k : 0, Most::kMaxTopK},
                   {"keep_top_k", options.keep_top_k, Most::kMaxKeepTopK}},
                  "CUDA");
}

int64_t detect_workspace_bytes(const DetectInputs& in, const DetectOptions& options) {
  Workspace work;
  return lay_out(in.batch, sizes_of(in, options), nullptr, &work);
}

void detect(const DetectInputs& in, const DetectOptions& options, const DetectOutputs& out, void* workspace,
            Stream stream) {
  if (in.batch == 0) return;
  const Sizes sizes = sizes_of(in, options);
  Workspace work;
  lay_out(in.batch, sizes, static_cast<char*>(workspace), &work);
  const auto images = static_cast<unsigned>(in.batch), classes = static_cast<unsigned>(sizes.foreground());
  const dim3 block(kThreads);
  memset_async(work.candidate_counts, 0, (int64_t{images} * classes + images) * sizeof(int), stream);
  if (classes > 0 && in.num_anchors > 0) {
    dispatch(in.type, [&](auto element) {
      using T = decltype(element);
      unsigned num_blocks;
      const Levels<T> levels = to_levels<T>(in, &num_blocks);
      launch("score_anchors_kernel", score_anchors_kernel<T>, dim3(num_blocks, images), block, 0, stream, levels,
             in.anchors, sizes, options, work);
    });
    const size_t shared = power_of_two_at_least(sizes.top_k) * sizeof(uint64_t) + sizes.kept_of_class * sizeof(Corners);
    launch("suppress_class_kernel", suppress_class_kernel, dim3(classes, images), block, shared, stream, sizes,
           options.iou_threshold, work);
  }
  launch("merge_classes_kernel", merge_classes_kernel, dim3(images), dim3(kMergeThreads),
         power_of_two_at_least(sizes.num_rows) * sizeof(uint64_t), stream, sizes, work, out);
}

#endif

}  // namespace refinedet::cuda
