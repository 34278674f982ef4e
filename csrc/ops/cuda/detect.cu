// detect on the GPU in three kernels (contract: ops/detect.h; drawing and costs: docs/kernels/detect.md).
#include "ops/cuda/block.h"
#include "ops/cuda/detect.h"
#include "ops/cuda/load.h"
#include "ops/cuda/runtime.h"

namespace refinedet::cuda {
namespace {

constexpr int kThreads = 256;        // of every kernel here; also the anchors of a block of score_anchors_kernel
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTileScores = 4096;    // exponentials a block keeps: 16 KiB, so that three blocks share a multiprocessor
constexpr int kTile = 64;            // candidates suppressed together: the bits of a mask row

// Workspace of an image batch, all of it written before it is read.
struct Workspace {
  uint32_t* counts;        // [B] survivors
  uint32_t* survivors;     // [B,N] their anchors
  Corners* boxes;          // [B,N] by anchor
  float* scores;           // [B,C-1,N] by survivor
  uint32_t* class_counts;  // [B,C-1] kept boxes
  uint64_t* class_keys;    // [B,C-1,limit] descending_key(score, anchor * C + class), best first
};

struct Sizes {
  int64_t anchors;
  int classes, foreground;
  int candidates;  // of a class that enter suppression, at most
  int limit;       // kept boxes of a class, at most
  int rows;        // of the output, per image
};

template <class T>
struct Level {
  const T *arm_loc, *arm_conf, *odm_loc, *odm_conf;
  int64_t first, count;  // anchors
};

template <class T>
struct Heads {
  Level<T> levels[kMaxLevels];
  int count;

  __device__ const Level<T>& of(int64_t anchor) const {
    int i = 0;
    while (i + 1 < count && anchor >= levels[i + 1].first) ++i;
    return levels[i];
  }
};

template <class T>
__device__ bool is_object(const Heads<T>& heads, int64_t image, int64_t anchor, float threshold) {
  const Level<T>& level = heads.of(anchor);
  if (level.arm_conf == nullptr) return true;
  const float2 logits = load_pair(level.arm_conf, image * level.count + anchor - level.first);
  return objectness(logits.x, logits.y) >= threshold;
}

template <class T>
__device__ Corners decode_anchor(const Heads<T>& heads, Center box, int64_t image, int64_t anchor, Variances variances) {
  const Level<T>& level = heads.of(anchor);
  const int64_t row = image * level.count + anchor - level.first;
  if (level.arm_loc != nullptr) box = decode(box, load_center(level.arm_loc, row), variances);
  return to_corners(decode(box, load_center(level.odm_loc, row), variances));
}

// Softmax of some survivors: logits come coalesced, exponentials are taken by all threads, sums go in class order (one
// thread each, so that they are the CPU's bit for bit), scores leave class by class.
template <class T>
__device__ void score_tile(const Heads<T>& heads, const Sizes& sizes, int64_t image, const uint32_t* anchors, int count,
                           float* scores, float* tile, float* totals) {
  const int lane = threadIdx.x % kWarpSize, classes = sizes.classes;
  for (int s = threadIdx.x / kWarpSize; s < count; s += kWarps) {
    const Level<T>& level = heads.of(anchors[s]);
    const T* const logits = level.odm_conf + (image * level.count + anchors[s] - level.first) * classes;
    float* const row = tile + s * classes;
    float highest = load(logits);
    for (int c = lane; c < classes; c += kWarpSize) {
      row[c] = load(logits + c);
      highest = row[c] > highest ? row[c] : highest;
    }
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, highest, lanes);
      highest = other > highest ? other : highest;
    }
    for (int c = lane; c < classes; c += kWarpSize) row[c] = portable_exp(row[c] - highest);
  }
  __syncthreads();
  if (threadIdx.x < count) {
    float total = 0.0f;
    for (int c = 0; c < classes; ++c) total += tile[threadIdx.x * classes + c];
    totals[threadIdx.x] = total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * sizes.foreground; i += kThreads) {
    const int c = i / count, s = i % count;
    scores[c * sizes.anchors + s] = tile[s * classes + c + 1] / totals[s];
  }
  __syncthreads();  // before the next tile
}

// One block: 256 anchors of an image. Filters them, decodes what is left, compacts it, scores it.
template <class T>
__global__ void score_anchors_kernel(Heads<T> heads, const float* anchors, Sizes sizes, float objectness_threshold,
                                     Variances variances, Workspace work) {
  REFINEDET_SHARED(float, tile, kTileScores);
  REFINEDET_SHARED(float, totals, kThreads);
  REFINEDET_SHARED(uint32_t, survivors, kThreads);
  REFINEDET_SHARED(int, warp_counts, kWarps);
  REFINEDET_SHARED(uint32_t, first_slot, 1);
  const int64_t image = blockIdx.y, anchor = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  Corners box{};
  bool survives = anchor < sizes.anchors && is_object(heads, image, anchor, objectness_threshold);
  if (survives) {
    box = decode_anchor(heads, load_center(anchors, anchor), image, anchor, variances);
    survives = finite(box);
  }
  const Rank rank = rank_in_block(survives, warp_counts);
  if (threadIdx.x == 0) *first_slot = atomicAdd(&work.counts[image], static_cast<uint32_t>(rank.total));
  __syncthreads();
  const int64_t image_row = image * sizes.anchors;
  if (survives) {
    survivors[rank.position] = static_cast<uint32_t>(anchor);
    work.boxes[image_row + anchor] = box;
    work.survivors[image_row + *first_slot + rank.position] = static_cast<uint32_t>(anchor);
  }
  __syncthreads();
  const int fit = kTileScores / sizes.classes, step = fit < kThreads ? fit : kThreads;
  float* const scores = work.scores + image * sizes.foreground * sizes.anchors + *first_slot;
  for (int s = 0; s < rank.total; s += step) {
    const int count = rank.total - s < step ? rank.total - s : step;
    score_tile(heads, sizes, image, survivors + s, count, scores + s, tile, totals);
  }
}

// Candidates of one class of one image.
struct ClassKey {
  const float* scores;
  const uint32_t* survivors;
  float threshold;
  uint32_t classes, label;

  __device__ uint64_t operator()(int64_t i) const {
    const float score = scores[i];
    return score > threshold ? descending_key(score, survivors[i] * classes + label) : kNoKey;
  }
};

// Masks of one tile of candidates: who is suppressed by a box kept before, and row by row whom a box of the tile would
// suppress in it. `dead` and `rows` come in zeroed.
__device__ void compare_tile(const Corners* tile, int count, const Corners* kept, int kept_count, float threshold,
                             unsigned long long* dead, unsigned long long* rows) {
  const int i = threadIdx.x % kTile;
  if (i >= count) return;
  const Corners box = tile[i];
  const float box_area = area(box);
  bool suppressed = false;
  for (int k = threadIdx.x / kTile; k < kept_count && !suppressed; k += kThreads / kTile)
    suppressed = overlaps(intersection(kept[k], box), area(kept[k]), box_area, threshold);
  if (suppressed) atomicOr(dead, 1ull << i);
  for (int k = threadIdx.x / kTile; k < i; k += kThreads / kTile)
    if (overlaps(intersection(tile[k], box), area(tile[k]), box_area, threshold)) atomicOr(&rows[k], 1ull << i);
}

// One block: a class of an image. Best candidates, sorted, then greedy suppression tile by tile; stops when `limit` boxes
// are kept, for worse ones cannot be among the image's best.
__global__ void suppress_class_kernel(Sizes sizes, float score_threshold, float iou_threshold, Workspace work) {
  REFINEDET_DYNAMIC_SHARED(uint64_t, keys);
  Corners* const kept = reinterpret_cast<Corners*>(keys + power_of_two_at_least(sizes.candidates));
  REFINEDET_SHARED(int, scratch, kDigits + 2);
  REFINEDET_SHARED(Corners, tile, kTile);
  REFINEDET_SHARED(unsigned long long, masks, kTile + 1);  // a row per candidate, then the dead
  const int64_t image = blockIdx.y, row = image * sizes.foreground + blockIdx.x;
  const ClassKey key{work.scores + row * sizes.anchors, work.survivors + image * sizes.anchors, score_threshold,
                     static_cast<uint32_t>(sizes.classes), blockIdx.x + 1};
  const int found = gather_best(key, work.counts[image], sizes.candidates, keys, scratch);
  int kept_count = 0;
  for (int first = 0; first < found && kept_count < sizes.limit; first += kTile) {
    const int count = found - first < kTile ? found - first : kTile;
    if (threadIdx.x < count)
      tile[threadIdx.x] = work.boxes[image * sizes.anchors + key_index(keys[first + threadIdx.x]) / sizes.classes];
    if (threadIdx.x <= kTile) masks[threadIdx.x] = 0;
    __syncthreads();
    compare_tile(tile, count, kept, kept_count, iou_threshold, &masks[kTile], masks);
    __syncthreads();
    unsigned long long dead = masks[kTile], alive = 0;
    for (int i = 0; i < count; ++i) {  // every thread for itself: cheaper than telling the others
      if (dead >> i & 1) continue;
      alive |= 1ull << i;
      dead |= masks[i];
    }
    const int i = threadIdx.x;
    if (i < count && (alive >> i & 1)) {
      const int position = kept_count + __popcll(alive & ((1ull << i) - 1));
      if (position < sizes.limit) {
        kept[position] = tile[i];
        work.class_keys[row * sizes.limit + position] = keys[first + i];
      }
    }
    kept_count += __popcll(alive);
    __syncthreads();  // before the next tile
  }
  if (threadIdx.x == 0) work.class_counts[row] = kept_count < sizes.limit ? kept_count : sizes.limit;
}

// What the classes of an image have kept.
struct KeptKey {
  const uint64_t* keys;
  const uint32_t* counts;
  int limit;

  __device__ uint64_t operator()(int64_t i) const {
    return static_cast<uint32_t>(i % limit) < counts[i / limit] ? keys[i] : kNoKey;
  }
};

// One block: an image. The best rows of all classes, and padding.
__global__ void merge_classes_kernel(Sizes sizes, Workspace work, DetectOutputs out) {
  REFINEDET_DYNAMIC_SHARED(uint64_t, keys);
  REFINEDET_SHARED(int, scratch, kDigits + 2);
  const int64_t image = blockIdx.x, first_row = image * sizes.foreground;
  const KeptKey key{work.class_keys + first_row * sizes.limit, work.class_counts + first_row, sizes.limit};
  const int found = gather_best(key, int64_t{sizes.foreground} * sizes.limit, sizes.rows, keys, scratch);
  for (int i = threadIdx.x; i < sizes.rows; i += kThreads) {
    const int64_t row = image * sizes.rows + i;
    const bool used = i < found;
    const uint32_t flat = used ? key_index(keys[i]) : 0;
    const uint32_t anchor = flat / sizes.classes;
    reinterpret_cast<Corners*>(out.boxes)[row] = used ? work.boxes[image * sizes.anchors + anchor] : Corners{};
    out.scores[row] = used ? key_score(keys[i]) : 0.0f;
    out.labels[row] = used ? flat % sizes.classes : 0;
    out.indices[row] = used ? static_cast<int64_t>(anchor) : -1;
  }
  if (threadIdx.x == 0) out.counts[image] = found;
}

}  // namespace

#if !defined(__CUDACC_RTC__)

namespace {

constexpr int64_t kAlignment = 256;  // of each part of the workspace

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

Sizes sizes_of(const DetectShape& shape) {
  const int64_t candidates = std::min(shape.top_k, shape.num_anchors);
  return {shape.num_anchors,
          static_cast<int>(shape.num_classes),
          static_cast<int>(shape.num_classes - 1),
          static_cast<int>(candidates),
          static_cast<int>(std::min(candidates, shape.keep_top_k)),
          static_cast<int>(shape.keep_top_k)};
}

// Lays the parts out one after another from `memory` on; returns the bytes they take.
int64_t lay_out(const DetectShape& shape, char* memory, Workspace* work) {
  const Sizes sizes = sizes_of(shape);
  const int64_t images = shape.batch, rows = images * sizes.foreground;
  int64_t used = 0;
  const auto part = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + used);
    used += aligned(count * static_cast<int64_t>(sizeof(*pointer)));
  };
  part(work->counts, images);
  part(work->survivors, images * sizes.anchors);
  part(work->boxes, images * sizes.anchors);
  part(work->scores, rows * sizes.anchors);
  part(work->class_counts, rows);
  part(work->class_keys, rows * sizes.limit);
  return used;
}

template <class T>
void run(const DetectHeads& in, const DetectShape& shape, const DetectOptions& options, const DetectOutputs& out,
         void* workspace, Stream stream) {
  const Sizes sizes = sizes_of(shape);
  Workspace work;
  lay_out(shape, static_cast<char*>(workspace), &work);
  Heads<T> heads{};
  heads.count = in.num_levels;
  for (int i = 0; i < in.num_levels; ++i) {
    const DetectLevel& level = in.levels[i];
    const auto typed = [](const void* pointer) { return static_cast<const T*>(pointer); };
    const int64_t first = i == 0 ? 0 : heads.levels[i - 1].first + heads.levels[i - 1].count;
    heads.levels[i] = {typed(level.arm_loc), typed(level.arm_conf), typed(level.odm_loc), typed(level.odm_conf), first,
                       level.num_anchors};
  }
  const auto images = static_cast<unsigned>(shape.batch);
  memset_async(work.counts, 0, shape.batch * sizeof(uint32_t), stream);
  if (sizes.foreground > 0) {
    const auto blocks = static_cast<unsigned>((sizes.anchors + kThreads - 1) / kThreads);
    if (blocks > 0)
      launch("score_anchors_kernel", score_anchors_kernel<T>, dim3(blocks, images), dim3(kThreads), 0, stream, heads,
             in.anchors, sizes, options.objectness_threshold, options.variances, work);
    const size_t shared = power_of_two_at_least(sizes.candidates) * sizeof(uint64_t) + sizes.limit * sizeof(Corners);
    launch("suppress_class_kernel", suppress_class_kernel, dim3(sizes.foreground, images), dim3(kThreads), shared, stream,
           sizes, options.score_threshold, options.iou_threshold, work);
  }
  launch("merge_classes_kernel", merge_classes_kernel, dim3(images), dim3(kThreads),
         power_of_two_at_least(sizes.rows) * sizeof(uint64_t), stream, sizes, work, out);
}

}  // namespace

int64_t detect_workspace_bytes(const DetectShape& shape) {
  Workspace work;
  return lay_out(shape, nullptr, &work);
}

std::string detect_refusal(const DetectShape& shape) {
  const auto refuse = [](const char* name, int64_t value, int64_t limit) {
    return std::string(name) + " is " + std::to_string(value) + ", on CUDA at most " + std::to_string(limit);
  };
  const int64_t candidates = std::min(shape.top_k, shape.num_anchors);
  if (shape.batch > kMaxBatch) return refuse("the batch", shape.batch, kMaxBatch);
  if (shape.num_classes > kMaxClasses) return refuse("the number of classes", shape.num_classes, kMaxClasses);
  if (candidates > kMaxTopK) return refuse("top_k", candidates, kMaxTopK);
  if (shape.keep_top_k > kMaxKeepTopK) return refuse("keep_top_k", shape.keep_top_k, kMaxKeepTopK);
  return "";
}

void detect(const DetectHeads& in, const DetectShape& shape, const DetectOptions& options, const DetectOutputs& out,
            void* workspace, Stream stream) {
  if (shape.batch == 0) return;
  switch (in.type) {
    case InputType::kFloat32: return run<float>(in, shape, options, out, workspace, stream);
    case InputType::kFloat16: return run<Half>(in, shape, options, out, workspace, stream);
    case InputType::kBFloat16: return run<BFloat16>(in, shape, options, out, workspace, stream);
  }
}

#endif

}  // namespace refinedet::cuda
