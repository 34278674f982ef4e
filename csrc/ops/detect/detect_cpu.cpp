#include "ops/detect/detect.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include "cpu/kept_boxes.h"
#include "cpu/objectness_filter.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/sort_keys.h"

namespace refinedet::cpu {
namespace {

constexpr int kLanes = 16;                // anchors that go through a vector function together
constexpr int64_t kMinChunk = 256;        // candidates sorted at a time
constexpr int64_t kTaskScores = 1 << 15;  // of an image: so many pay for another thread

// One row per class or coordinate, one column per anchor.
using TileRow = float[kLanes];
using BitRow = uint32_t[kLanes];

const float* floats(const void* elements) { return static_cast<const float*>(elements); }

// The anchors of a level of an image that pass the filter.
struct LevelAnchors {
  const float* odm_conf;  // of the level and image
  int64_t first_anchor;   // of the level, among all anchors
  const uint32_t* begin;  // numbers within the level
  int64_t count;
};

// Keys of candidates, descending_key(score, anchor * C + class).
struct Candidates {
  Scratch<uint64_t> keys;
  int64_t count = 0;
  Scratch<float> tile;  // scores of 16 anchors

  uint64_t* room_for(int64_t more) { return keys.reserve(count + more, count) + count; }
  int64_t bytes() const { return keys.bytes() + tile.bytes(); }
};

struct DetectScratch {
  Scratch<uint32_t> anchors;
  Candidates candidates;
  SortScratch sort;
  KeptBoxes kept;
  Scratch<int64_t> seen;

  int64_t bytes() const { return anchors.bytes() + candidates.bytes() + sort.bytes() + kept.bytes() + seen.bytes(); }
};

// --- Scores -----------------------------------------------------------------------------------------------------------

using ImageAnchors = std::array<LevelAnchors, kMaxLevels>;

// The numbers of the anchors come into `storage`.
ImageAnchors filter_image(const DetectInputs& in, const ObjectnessFilter& filter, int64_t image,
                          Scratch<uint32_t>& storage) {
  ImageAnchors levels{};
  uint32_t* next = storage.reserve(in.num_anchors);
  int64_t first_anchor = 0;
  for (int l = 0; l < in.num_levels; ++l) {
    const DetectLevel& level = in.levels[l];
    const int64_t first_row = image * level.num_anchors;
    int64_t count = level.num_anchors;
    if (level.arm_conf == nullptr) {
      std::iota(next, next + count, 0);
    } else {
      count = filter(floats(level.arm_conf) + 2 * first_row, count, next);
    }
    levels[l] = {floats(level.odm_conf) + first_row * in.num_classes, first_anchor, next, count};
    next += count;
    first_anchor += level.num_anchors;
  }
  return levels;
}

// 16 rows of numbers become columns.
[[gnu::always_inline]] inline void load_tile(const float* const* rows, int64_t width, TileRow* tile) {
  int64_t begin = 0;  // of the numbers that are left
#ifdef __SSE__
  for (; begin + 4 <= width; begin += 4) {
    for (int lane = 0; lane < kLanes; lane += 4) {
      __m128 a = _mm_loadu_ps(rows[lane] + begin), b = _mm_loadu_ps(rows[lane + 1] + begin);
      __m128 c = _mm_loadu_ps(rows[lane + 2] + begin), d = _mm_loadu_ps(rows[lane + 3] + begin);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      _mm_storeu_ps(tile[begin] + lane, a);
      _mm_storeu_ps(tile[begin + 1] + lane, b);
      _mm_storeu_ps(tile[begin + 2] + lane, c);
      _mm_storeu_ps(tile[begin + 3] + lane, d);
    }
  }
#endif
  for (int64_t i = begin; i < width; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) tile[i][lane] = rows[lane][i];
  }
}

// Turns logits into exponentials, below the highest of each anchor, and gives their sums. Rows are walked by loops, not
// as vector types: GCC splits those before it makes the clones.
template <float exp_of(float)>
[[gnu::always_inline]] inline void sum_exponentials(TileRow* tile, int64_t num_classes, const TileRow& highest,
                                                    TileRow& total) {
  TileRow sum = {};
  for (int64_t c = 0; c < num_classes; ++c) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      tile[c][lane] = exp_of(tile[c][lane] - highest[lane]);
      sum[lane] += tile[c][lane];
    }
  }
  std::copy_n(sum, kLanes, total);
}

// Exponentials of 16 anchors and their sums. Bit c % 32 of likely[c / 32][l] says that anchor l may be a candidate in
// class c.
REFINEDET_VECTOR_CLONES
void exponentials(const float* const* rows, int64_t num_classes, float likely_from, TileRow* tile, TileRow& total,
                  BitRow* likely) {
  load_tile(rows, num_classes, tile);
  TileRow highest;
  std::copy_n(tile[0], kLanes, highest);
  for (int64_t c = 1; c < num_classes; ++c) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      highest[lane] = tile[c][lane] > highest[lane] ? tile[c][lane] : highest[lane];
    }
  }
  BitRow moderate;
  std::fill_n(moderate, kLanes, 1);
  for (int64_t c = 0; c < num_classes; ++c) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      moderate[lane] &= tile[c][lane] - highest[lane] >= -kModerate;  // a NaN is not
    }
  }
  if (std::accumulate(moderate, moderate + kLanes, 0) == kLanes) {
    sum_exponentials<portable_exp_of_moderate>(tile, num_classes, highest, total);
  } else {
    sum_exponentials<portable_exp>(tile, num_classes, highest, total);
  }
  TileRow bound;
  for (int lane = 0; lane < kLanes; ++lane) bound[lane] = likely_from * total[lane];
  for (int64_t first = 0; first < num_classes; first += 32, ++likely) {
    BitRow bits = {};
    for (int64_t c = first; c < std::min(first + 32, num_classes); ++c) {
      const uint32_t bit = 1u << (c - first);
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) bits[lane] |= -uint32_t{tile[c][lane] > bound[lane]} & bit;
    }
    std::copy_n(bits, kLanes, *likely);
  }
}

// Times the sum of an anchor's exponentials, what one of them exceeds if its score may exceed the threshold. The sum is
// between 1 and C; the margin is more than the error of product and quotient, where they are not subnormal.
float likely_from(float threshold) { return threshold > 1e-30f ? threshold * (1 - 1.0f / (1 << 20)) : -1.0f; }

void append_candidates(const LevelAnchors& level, int64_t num_classes, float threshold, Candidates& candidates) {
  const int64_t words = (num_classes + 31) / 32;  // of bits
  auto* const tile = reinterpret_cast<TileRow*>(candidates.tile.reserve((num_classes + words) * kLanes));
  auto* const likely = reinterpret_cast<BitRow*>(tile + num_classes);
  const float from = likely_from(threshold);
  for (int64_t first = 0; first < level.count; first += kLanes) {
    const int used = static_cast<int>(std::min<int64_t>(kLanes, level.count - first));
    const uint32_t* const anchors = level.begin + first;
    const float* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      rows[lane] = level.odm_conf + anchors[std::min(lane, used - 1)] * num_classes;
    TileRow total;
    exponentials(rows, num_classes, from, tile, total, likely);
    uint64_t* const begin = candidates.room_for(used * num_classes);
    uint64_t* next = begin;
    for (int lane = 0; lane < used; ++lane) {
      const auto first_score = static_cast<uint32_t>((level.first_anchor + anchors[lane]) * num_classes);
      for (int64_t w = 0; w < words; ++w) {
        const uint32_t background = w == 0 ? 1 : 0;
        for (uint32_t bits = likely[w][lane] & ~background; bits != 0; bits &= bits - 1) {
          const auto c = static_cast<uint32_t>(32 * w + std::countr_zero(bits));
          const float score = tile[c][lane] / total[lane];
          *next = descending_key(score, first_score + c);
          next += score > threshold;
        }
      }
    }
    candidates.count += next - begin;
  }
}

// Those of an image that has the threads for itself, on all of them.
void share_candidates(const ImageAnchors& image, int64_t num_classes, float threshold, Candidates& candidates) {
  const int64_t size = (kTaskScores / num_classes + kLanes) / kLanes * kLanes;
  std::vector<LevelAnchors> tasks;
  for (const LevelAnchors& level : image) {
    for (int64_t begin = 0; begin < level.count; begin += size) {
      tasks.push_back({level.odm_conf, level.first_anchor, level.begin + begin, std::min(size, level.count - begin)});
    }
  }
  std::vector<Candidates> found(tasks.size());
  parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) append_candidates(tasks[i], num_classes, threshold, found[i]);
  });
  for (const Candidates& part : found) {
    std::copy_n(part.keys.data(), part.count, candidates.room_for(part.count));
    candidates.count += part.count;
  }
}

void find_candidates(const DetectInputs& in, const DetectOptions& options, const ImageAnchors& image,
                     Candidates& candidates) {
  int64_t scores = 0;
  for (const LevelAnchors& level : image) scores += level.count * in.num_classes;
  if (in.batch == 1 && scores >= 2 * kTaskScores && num_threads() > 1) {
    share_candidates(image, in.num_classes, options.score_threshold, candidates);
  } else {
    for (const LevelAnchors& level : image) {
      append_candidates(level, in.num_classes, options.score_threshold, candidates);
    }
  }
}

// --- Suppression ------------------------------------------------------------------------------------------------------

struct BoxTile {
  TileRow x1, y1, x2, y2, area;
};

// Moves boxes, rows cx, cy, w, h, by the offsets of a stage.
[[gnu::always_inline]] inline void move_tile(const float* const* stage, Variances variances, TileRow* centers) {
  TileRow offsets[4];
  load_tile(stage, 4, offsets);
  for (int lane = 0; lane < kLanes; ++lane) {
    const Center anchor{centers[0][lane], centers[1][lane], centers[2][lane], centers[3][lane]};
    const Center offset{offsets[0][lane], offsets[1][lane], offsets[2][lane], offsets[3][lane]};
    const Center moved = decode(anchor, offset, variances);
    centers[0][lane] = moved.cx;
    centers[1][lane] = moved.cy;
    centers[2][lane] = moved.w;
    centers[3][lane] = moved.h;
  }
}

// The boxes of 16 anchors, moved by the offsets of one stage or, with `arm`, two.
REFINEDET_VECTOR_CLONES
void decode_tile(const float* const* anchors, const float* const* arm, const float* const* odm, Variances variances,
                 BoxTile* boxes) {
  TileRow centers[4];
  load_tile(anchors, 4, centers);
  if (arm != nullptr) move_tile(arm, variances, centers);
  move_tile(odm, variances, centers);
  for (int lane = 0; lane < kLanes; ++lane) {
    const Corners box = to_corners({centers[0][lane], centers[1][lane], centers[2][lane], centers[3][lane]});
    boxes->x1[lane] = box.x1;
    boxes->y1[lane] = box.y1;
    boxes->x2[lane] = box.x2;
    boxes->y2[lane] = box.y2;
    boxes->area[lane] = area(box);
  }
}

// Walks the candidates of an image in their order and keeps what no better box of its class suppresses. The order is
// also that of the output, so the walk ends with the last row to fill: only the candidates it meets are sorted and
// decoded.
class ImageSuppression {
 public:
  ImageSuppression(const DetectInputs& in, const DetectOptions& options, const DetectOutputs& out, int64_t image,
                   DetectScratch& scratch)
      : in_(in),
        options_(options),
        out_(out),
        image_(image),
        sort_(scratch.sort),
        kept_(scratch.kept),
        seen_(scratch.seen.reserve(in.num_classes)) {
    kept_.reset(in.num_classes);
    std::fill_n(seen_, in.num_classes, 0);
  }

  void run(uint64_t* keys, int64_t count) {
    for (int64_t chunk = std::max(kMinChunk, options_.keep_top_k); count > 0 && !full();) {
      chunk = std::min(chunk, count);
      const int64_t taken = take_smallest(keys, count, chunk);
      sort_keys(keys, taken, sort_);
      for (int64_t i = 0; i < taken && !full(); i += kLanes) keep_best(keys + i, std::min<int64_t>(kLanes, taken - i));
      keys += taken;
      count -= taken;
      chunk = 2 * taken;
    }
    pad();
  }

 private:
  bool full() const { return count_ == options_.keep_top_k; }

  // Up to 16 candidates.
  void keep_best(const uint64_t* keys, int64_t count) {
    uint32_t anchors[kLanes], labels[kLanes];
    const auto num_classes = static_cast<uint32_t>(in_.num_classes);
    for (int64_t i = 0; i < count; ++i) {
      anchors[i] = key_index(keys[i]) / num_classes;
      labels[i] = key_index(keys[i]) % num_classes;
    }
    std::fill(anchors + count, anchors + kLanes, anchors[0]);
    BoxTile boxes;
    decode_boxes(anchors, &boxes);
    for (int64_t i = 0; i < count && !full(); ++i) {
      const Corners box{boxes.x1[i], boxes.y1[i], boxes.x2[i], boxes.y2[i]};
      const uint32_t label = labels[i];
      if (!finite(box) || seen_[label] == options_.top_k) continue;
      ++seen_[label];
      if (kept_.suppresses(label, box, boxes.area[i], options_.iou_threshold)) continue;
      kept_.add(label, box, boxes.area[i]);
      write(key_score(keys[i]), box, label, anchors[i]);
    }
  }

  void decode_boxes(const uint32_t* anchors, BoxTile* boxes) const {
    const float *plain[kLanes], *arm[kLanes], *odm[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const DetectLevel* level = in_.levels;
      int64_t row = anchors[lane];
      for (; row >= level->num_anchors; ++level) row -= level->num_anchors;
      row += image_ * level->num_anchors;
      plain[lane] = in_.anchors + 4 * int64_t{anchors[lane]};
      odm[lane] = floats(level->odm_loc) + 4 * row;
      arm[lane] = level->arm_loc == nullptr ? nullptr : floats(level->arm_loc) + 4 * row;
    }
    decode_tile(plain, arm[0] == nullptr ? nullptr : arm, odm, options_.variances, boxes);
  }

  void write(float score, Corners box, uint32_t label, uint32_t anchor) {
    const int64_t row = image_ * options_.keep_top_k + count_++;
    out_.boxes[4 * row] = box.x1;
    out_.boxes[4 * row + 1] = box.y1;
    out_.boxes[4 * row + 2] = box.x2;
    out_.boxes[4 * row + 3] = box.y2;
    out_.scores[row] = score;
    out_.labels[row] = label;
    out_.indices[row] = anchor;
  }

  void pad() {
    const int64_t row = image_ * options_.keep_top_k + count_, rows = options_.keep_top_k - count_;
    std::fill_n(out_.boxes + 4 * row, 4 * rows, 0.0f);
    std::fill_n(out_.scores + row, rows, 0.0f);
    std::fill_n(out_.labels + row, rows, 0);
    std::fill_n(out_.indices + row, rows, -1);
    out_.counts[image_] = count_;
  }

  const DetectInputs& in_;
  const DetectOptions& options_;
  const DetectOutputs& out_;
  const int64_t image_;
  int64_t count_ = 0;
  SortScratch& sort_;
  KeptBoxes& kept_;
  int64_t* const seen_;  // candidates met per class, suppressed ones included
};

}  // namespace

std::string detect_limits(const DetectInputs& in, const DetectOptions&) {
  return exceeded({{"the number of anchors", in.num_anchors, DetectLimits::kMaxScores / in.num_classes}}, "the CPU");
}

void detect(const DetectInputs& in, const DetectOptions& options, const DetectOutputs& out) {
  const ObjectnessFilter filter(options.objectness_threshold);
  const auto run = [&](int64_t begin, int64_t end) {
    const ThreadScratch<DetectScratch> scratch;
    for (int64_t image = begin; image < end; ++image) {
      Candidates& candidates = scratch->candidates;
      candidates.count = 0;
      find_candidates(in, options, filter_image(in, filter, image, scratch->anchors), candidates);
      ImageSuppression(in, options, out, image, *scratch).run(candidates.keys.data(), candidates.count);
    }
  };
  if (in.batch == 1) {
    run(0, 1);  // on this thread, which may call others
  } else {
    parallel_for(0, in.batch, 1, run);
  }
}

}  // namespace refinedet::cpu
