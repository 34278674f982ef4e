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

// Blocks of suppress_class_kernel that a multiprocessor has shared memory for: registers shall not keep them out.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kBlocksAtOnce = 3;
#else
constexpr int kBlocksAtOnce = 5;
#endif

// All written before it is read, but for the counters, which come first and start at 0.
struct Workspace {
  int64_t counter_bytes;
  int* candidate_counts;  // [B,C-1] also of those the list has no room for
  uint64_t* candidates;   // [B,C-1,list_size] descending_key(score, anchor * C + class), in any order
  float* boxes;           // [B,N,4] corners, of the survivors: the anchors that pass the filter
  unsigned* survivors;    // [B,blocks of score_anchors_kernel,warps] a bit per anchor
  float* softmax;         // [B,N,2] highest logit and sum of exponentials, of the survivors
  int* kept_counts;       // [B]
  uint64_t* kept;         // [B,(C-1) * kept_of_class] keys of the boxes that survive suppression, in any order
};

// Candidates and kept boxes of an image have 40 bytes per anchor together, but a class has room for 512 candidates.
constexpr int64_t kKeysPerAnchor = 5, kMinList = 512;

struct Sizes {
  int64_t num_anchors;
  int num_classes;
  int num_blocks;     // of score_anchors_kernel, per image
  int list_size;      // candidates of a class that are listed; of more, the scores are taken again
  int top_k;          // candidates of a class that enter suppression, at most
  int kept_of_class;  // survivors of a class, at most: worse ones cannot be among the image's best
  int num_rows;       // of the output, per image

  __host__ __device__ int foreground() const { return num_classes - 1; }
  // Keys of a class, and as many again that sorting needs; or the boxes it keeps.
  __host__ __device__ int half_of_keys() const {
    const int keys = sort_capacity(top_k > kLongRun ? top_k : kLongRun), boxes = 2 * kept_of_class;
    return keys > boxes ? keys : boxes;
  }
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
__device__ Level<T> level_of_block(const Levels<T>& levels, unsigned block) {
  Level<T> level = levels.all[0];
  for (int i = 1; i < kMaxLevels; ++i)
    if (block >= levels.all[i].first_block) level = levels.all[i];
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

// Which of an anchor's scores pass the threshold, without a division but where rounding decides: a term below the
// rounded product fails, for then its quotient is not above the threshold; one far enough above it passes.
struct ScoreTest {
  float threshold, total, fails_below, passes_from;

  __device__ ScoreTest(float threshold, float total)
      : threshold(threshold), total(total), fails_below(threshold * total), passes_from(bits_float(0x7f800000u)) {
    if (fails_below > 1e-30f) passes_from = fails_below * 1.000001f;  // only saves work: the quotient says the same
  }
  __device__ bool operator()(float term) const {
    if (term >= passes_from) return true;  // only saves work: the quotient says the same
    return term >= fails_below && term / total > threshold;
  }
};

// A thread per anchor sums, and stores what its scores can be taken from again. In `totals` are the highest logits so
// far. Ends with a barrier.
__device__ inline void take_totals(const ScoreTile& tile, int num_classes, float* softmax) {
  const int i = threadIdx.x;
  if (i < tile.count) {
    const float highest = tile.totals[i], total = sum_terms(tile.row(i), num_classes);
    tile.totals[i] = total;
    reinterpret_cast<float2*>(softmax)[tile.anchors[i]] = make_float2(highest, total);
  }
  __syncthreads();
}

// How many anchors of a tile are candidates of the class `first` + 8 k, for k = this lane's index < `classes` <= 32.
__device__ inline int count_candidates(const ScoreTile& tile, int first, int classes, float threshold) {
  const int lane = lane_index();
  int found = 0;
  for (int i = lane; i - lane < tile.count; i += kWarpSize) {
    const bool used = i < tile.count;
    const ScoreTest passes(threshold, tile.totals[used ? i : 0]);
    const float* const terms = tile.row(used ? i : 0) + first;
#pragma unroll 1  // few registers
    for (int k = 0; k < classes; ++k) {
      const unsigned ballot = __ballot_sync(kFullWarp, used && passes(terms[k * kWarps]));
      if (lane == k) found += __popc(ballot);
    }
  }
  return found;
}

// Appends the candidates of a tile to the lists of their classes, as far as there is room. A warp has every eighth
// class and reserves the places of up to 32 at once.
__device__ inline void append_candidates(const ScoreTile& tile, int64_t image, int64_t first_anchor, const Sizes& sizes,
                                         float threshold, const Workspace& work) {
  const int lane = lane_index();
  const int64_t first_list = image * sizes.foreground() - 1;
  for (int first = 1 + warp_index(); first < sizes.num_classes; first += kWarps * kWarpSize) {
    int classes = (sizes.num_classes - first + kWarps - 1) / kWarps;
    if (classes > kWarpSize) classes = kWarpSize;  // only saves work: the others are counted in the next turn
    const int found = count_candidates(tile, first, classes, threshold);
    int reserved = 0;
    if (found > 0) reserved = atomicAdd(&work.candidate_counts[first_list + first + lane * kWarps], found);
    for (unsigned rest = __ballot_sync(kFullWarp, found > 0); rest != 0; rest &= rest - 1) {
      const int k = __ffs(static_cast<int>(rest)) - 1, c = first + k * kWarps;
      int place = __shfl_sync(kFullWarp, reserved, k);
      uint64_t* const list = work.candidates + (first_list + c) * sizes.list_size;
      for (int i = lane; i - lane < tile.count; i += kWarpSize) {
        const bool passes = i < tile.count && ScoreTest(threshold, tile.totals[i])(tile.row(i)[c]);
        const unsigned ballot = __ballot_sync(kFullWarp, passes);
        const int mine = place + __popc(ballot & lanes_below(lane));
        if (passes && mine < sizes.list_size) {
          const auto flat = static_cast<uint32_t>((first_anchor + tile.anchors[i]) * sizes.num_classes + c);
          list[mine] = descending_key(tile.score(i, c), flat);
        }
        place += __popc(ballot);
      }
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
  const Level<T> level = level_of_block(levels, blockIdx.x);
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
  const unsigned ballot = __ballot_sync(kFullWarp, survives);
  const int64_t word = (image * sizes.num_blocks + blockIdx.x) * kWarps + warp_index();
  if (lane_index() == 0) work.survivors[word] = ballot;
  const Rank rank = rank_in_block(survives, warp_counts);
  if (survives) survivors[rank.position] = thread;
  __syncthreads();
  const int row_size = softmax_row_size(sizes.num_classes), fit = kTileTerms / row_size;
  for (int s = 0; s < rank.total; s += fit) {
    const ScoreTile tile{{survivors + s, min(rank.total - s, fit), terms, row_size}, totals};
    take_exponentials(tile, level.odm_conf + first_row * sizes.num_classes, sizes.num_classes,
                      [=](int i, float highest) { totals[i] = highest; });
    take_totals(tile, sizes.num_classes, work.softmax + 2 * (image * sizes.num_anchors + first_anchor));
    append_candidates(tile, image, first_anchor, sizes, options.score_threshold, work);
    __syncthreads();
  }
}

// The candidates of a class of an image: from its list, or, where that had no room for all, from the logits again, bit
// for bit the same.
template <class T>
struct CandidateKey {
  const uint64_t* list;  // null: without room
  const Levels<T>& levels;
  const Sizes& sizes;
  const Workspace& work;
  int64_t image;
  int class_index;
  float threshold;

  __device__ uint64_t operator()(unsigned i) const {
    return list != nullptr ? list[i] : score_again(i / kThreads, static_cast<int>(i % kThreads));
  }

  // Of the anchor that a thread of a block of score_anchors_kernel has.
  __device__ uint64_t score_again(unsigned block, int thread) const {
    const unsigned survivors = work.survivors[(image * sizes.num_blocks + block) * kWarps + thread / kWarpSize];
    if (!(survivors >> thread % kWarpSize & 1)) return kNoKey;
    const Level<T> level = level_of_block(levels, block);
    const int64_t row = int64_t{block - level.first_block} * kThreads + thread, anchor = level.first_anchor + row;
    const float2 softmax = reinterpret_cast<const float2*>(work.softmax)[image * sizes.num_anchors + anchor];
    const T* const logits = level.odm_conf + (image * level.num_anchors + row) * sizes.num_classes;
    const float score = portable_exp(load(logits + class_index) - softmax.x) / softmax.y;
    if (!(score > threshold)) return kNoKey;
    return descending_key(score, static_cast<uint32_t>(anchor * sizes.num_classes + class_index));
  }
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
  if (thread < kTile) shared->rows[thread] = 0;  // all are read, those of candidates that do not count too
  int kept_count = 0;
  for (int first = 0; first < count; first += kTile) {
    if (kept_count == limit) break;
    const int in_tile = min(count - first, kTile);
    if (thread < kTile) shared->tile[thread] = box;
    __syncthreads();
    const uint64_t tile_key = key;
    const Corners low = shared->tile[lane], high = shared->tile[lane + kWarpSize];
    fetch(first + kTile);  // arrives while the tile is compared
    uint64_t alive = in_tile < kTile ? bits_below(in_tile) : ~uint64_t{0};
    if (kept_count > 0) {
      const auto kept_box = [=](int k) { return kept[k]; };
      const uint64_t hit = suppressed_by(kept_box, warp_index(), kept_count, kWarps, low, high, threshold);
      if (lane == 0) shared->suppressed[warp_index()] = hit;
      __syncthreads();
      for (int w = 0; w < kWarps; ++w) alive &= ~shared->suppressed[w];
    }
#pragma unroll 1  // few registers, so that more blocks fit
    for (int i = warp_index(); i < in_tile; i += kWarps) {
      if ((alive >> i & 1) == 0) continue;
      const Corners row = shared->tile[i];
      const bool by_high = i > kWarpSize && suppresses(row, high, threshold);  // only those before it count
      const uint64_t word = ballot_tile(suppresses(row, low, threshold), by_high);
      if (lane == 0) shared->rows[i] = word;
    }
    __syncthreads();
    alive = pick_greedily(shared->rows, alive);
    if (thread < kTile && (alive >> thread & 1)) {
      const int place = kept_count + __popcll(alive & bits_below(thread));
      if (place < limit) {
        kept[place] = shared->tile[thread];
        keys[place] = tile_key;
      }
    }
    kept_count = min(kept_count + __popcll(alive), limit);
  }
  return kept_count;
}

// One block: a class of an image. Its best candidates, in order, suppress each other.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce)
    suppress_class_kernel(Levels<T> levels, Sizes sizes, DetectOptions options, Workspace work) {
  REFINEDET_DYNAMIC_SHARED(uint64_t, keys);
  REFINEDET_SHARED(Selection, selection, 1);
  REFINEDET_SHARED(Suppression, suppression, 1);
  REFINEDET_SHARED(int, first_place, 1);
  const int class_index = 1 + static_cast<int>(blockIdx.x);
  const int64_t image = blockIdx.y, list = image * sizes.foreground() + blockIdx.x;
  int found = work.candidate_counts[list];
  if (found == 0) return;
  const uint64_t* const candidates = work.candidates + list * sizes.list_size;
  const int half = sizes.half_of_keys();
  if (found <= kLongRun) {  // no list lacks room for so many
    for (int i = threadIdx.x; i < found; i += kThreads) keys[i] = candidates[i];
  } else {
    const bool listed = found <= sizes.list_size;
    const CandidateKey<T> key{listed ? candidates : nullptr, levels, sizes, work, image, class_index,
                              options.score_threshold};
    const unsigned count = listed ? found : sizes.num_blocks * kThreads;
    found = gather_best(key, count, sizes.top_k, keys, 2 * half, selection);
  }
  uint64_t* const other = keys + half;
  uint64_t* const sorted = sort_keys(keys, other, found);
  Corners* const kept = reinterpret_cast<Corners*>(sorted == keys ? other : keys);
  const float* const boxes = work.boxes + 4 * image * sizes.num_anchors;
  const int kept_count = suppress_keys(sorted, min(found, sizes.top_k), kept, sizes.kept_of_class, boxes, sizes,
                                       options.iou_threshold, suppression);
  if (threadIdx.x == 0) *first_place = atomicAdd(&work.kept_counts[image], kept_count);
  __syncthreads();
  uint64_t* const out = work.kept + image * sizes.foreground() * sizes.kept_of_class + *first_place;
  for (int i = threadIdx.x; i < kept_count; i += kThreads) out[i] = sorted[i];
}

constexpr int kMergeHalf = kMaxSorted;  // keys

// One block: an image. The best rows of all classes, and padding.
__global__ void __launch_bounds__(kMergeThreads) merge_classes_kernel(Sizes sizes, Workspace work, DetectOutputs out) {
  REFINEDET_DYNAMIC_SHARED(uint64_t, keys);
  REFINEDET_SHARED(Selection, selection, 1);
  const int64_t image = blockIdx.x;
  const KeyList kept{work.kept + image * sizes.foreground() * sizes.kept_of_class};
  int found = work.kept_counts[image];
  if (found <= kLongRun) {
    for (int i = threadIdx.x; i < found; i += kMergeThreads) keys[i] = kept(i);
  } else {
    found = gather_best(kept, found, sizes.num_rows, keys, 2 * kMergeHalf, selection);
  }
  const uint64_t* const sorted = sort_keys(keys, keys + kMergeHalf, found);
  found = min(found, sizes.num_rows);
  for (int i = threadIdx.x; i < sizes.num_rows; i += kMergeThreads) {
    const int64_t row = image * sizes.num_rows + i;
    const bool used = i < found;
    const uint32_t flat = used ? key_index(sorted[i]) : 0, classes = static_cast<uint32_t>(sizes.num_classes);
    const uint32_t anchor = flat / classes;
    store_corners(out.boxes, row, used ? load_corners(work.boxes, image * sizes.num_anchors + anchor) : Corners{});
    out.scores[row] = used ? key_score(sorted[i]) : 0.0f;
    out.labels[row] = used ? flat - anchor * classes : 0;
    out.indices[row] = used ? int64_t{anchor} : -1;
  }
  if (threadIdx.x == 0) out.counts[image] = found;
}

#define INSTANTIATE(T)                                                                                     \
  template __global__ void score_anchors_kernel(Levels<T>, const float*, Sizes, DetectOptions, Workspace); \
  template __global__ void suppress_class_kernel(Levels<T>, Sizes, DetectOptions, Workspace)
INSTANTIATE(float);
INSTANTIATE(Half);
INSTANTIATE(BFloat16);
#undef INSTANTIATE

}  // namespace

#if !defined(__CUDACC_RTC__)

namespace {

int blocks_for(int64_t num_anchors) { return static_cast<int>((num_anchors + kThreads - 1) / kThreads); }

Sizes sizes_of(const DetectInputs& in, const DetectOptions& options) {
  const auto of_anchors = [&](int64_t size) { return static_cast<int>(std::min(size, in.num_anchors)); };
  int blocks = 0;
  for (int i = 0; i < in.num_levels; ++i) blocks += blocks_for(in.levels[i].num_anchors);
  const int64_t kept = std::min(options.top_k, options.keep_top_k), classes = std::max<int64_t>(in.num_classes - 1, 1);
  return {.num_anchors = in.num_anchors,
          .num_classes = static_cast<int>(in.num_classes),
          .num_blocks = blocks,
          .list_size = of_anchors(std::max(kKeysPerAnchor * in.num_anchors / classes - kept, kMinList)),
          .top_k = of_anchors(options.top_k),
          .kept_of_class = of_anchors(kept),
          .num_rows = static_cast<int>(options.keep_top_k)};
}

// Lays the workspace out from `memory` on; returns the bytes it takes.
int64_t lay_out(int64_t images, const Sizes& sizes, char* memory, Workspace* work) {
  Layout layout(memory);
  const int64_t lists = images * sizes.foreground();
  work->candidate_counts = layout.part<int>(lists);
  work->kept_counts = layout.part<int>(images);
  work->counter_bytes = layout.bytes();
  work->boxes = layout.part<float>(images * sizes.num_anchors * 4);
  work->survivors = layout.part<unsigned>(images * (sizes.num_anchors / kThreads + kMaxLevels) * kWarps);
  work->softmax = layout.part<float>(images * sizes.num_anchors * 2);
  work->kept = layout.part<uint64_t>(lists * sizes.kept_of_class);
  work->candidates = layout.part<uint64_t>(lists * sizes.list_size);
  return layout.bytes();
}

template <class T>
Levels<T> to_levels(const DetectInputs& in) {
  Levels<T> levels;
  int64_t anchors = 0;
  int blocks = 0;
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
  memset_async(work.candidate_counts, 0, work.counter_bytes, stream);
  if (classes > 0 && in.num_anchors > 0) {
    dispatch(in.type, [&](auto element) {
      using T = decltype(element);
      const Levels<T> levels = to_levels<T>(in);
      launch("score_anchors_kernel", score_anchors_kernel<T>, dim3(sizes.num_blocks, images), block, 0, stream, levels,
             in.anchors, sizes, options, work);
      launch("suppress_class_kernel", suppress_class_kernel<T>, dim3(classes, images), block,
             2 * sizes.half_of_keys() * sizeof(uint64_t), stream, levels, sizes, options, work);
    });
  }
  launch("merge_classes_kernel", merge_classes_kernel, dim3(images), dim3(kMergeThreads),
         2 * kMergeHalf * sizeof(uint64_t), stream, sizes, work, out);
}

#endif

}  // namespace refinedet::cuda
