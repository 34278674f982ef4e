#include "ops/detect/detect.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <vector>

#include "cpu/kept_boxes.h"
#include "cpu/objectness_filter.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/sort_keys.h"

namespace refinedet::cpu {
namespace {

constexpr int kLanes = 16;              // anchors that go through a vector function together
constexpr int64_t kMinChunk = 256;      // candidates sorted at a time
constexpr int64_t kMinScores = 1 << 15;  // of an image, for which it pays to wake another thread

// One row per class or coordinate, one column per anchor.
using TileRow = float[kLanes];

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

  uint64_t* room_for(int64_t more) { return keys.reserve(count + more, count) + count; }
};

struct DetectScratch {
  Scratch<uint32_t> anchors;
  Scratch<float> tile;
  Scratch<uint32_t> likely;
  Candidates candidates;
  SortScratch sort;
  KeptBoxes kept;
  Scratch<int64_t> seen;

  int64_t bytes() const {
    return anchors.bytes() + tile.bytes() + likely.bytes() + candidates.keys.bytes() + sort.bytes() + kept.bytes() +
           seen.bytes();
  }
};

// --- Scores -----------------------------------------------------------------------------------------------------------

// The levels of an image; the numbers of their anchors come into `storage`.
std::array<LevelAnchors, kMaxLevels> filter_image(const DetectInputs& in, const ObjectnessFilter& filter, int64_t image,
                                                  Scratch<uint32_t>& storage) {
  std::array<LevelAnchors, kMaxLevels> levels{};
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

// Turns the logits of 16 anchors into scores of the classes in which some of them may be candidates: bit l of likely[c]
// says that of anchor l.
REFINEDET_VECTOR_CLONES
void score_tile(const float* logits, const int64_t* rows, int64_t num_classes, float likely_from, TileRow* tile,
                uint32_t* likely) {
  TileRow highest, total, bound;
  for (int lane = 0; lane < kLanes; ++lane) {
    tile[0][lane] = highest[lane] = logits[rows[lane]];
    total[lane] = 0.0f;
  }
  for (int64_t c = 1; c < num_classes; ++c) {
    for (int lane = 0; lane < kLanes; ++lane) {
      tile[c][lane] = logits[rows[lane] + c];
      highest[lane] = tile[c][lane] > highest[lane] ? tile[c][lane] : highest[lane];
    }
  }
  for (int64_t c = 0; c < num_classes; ++c) {
    for (int lane = 0; lane < kLanes; ++lane) {
      tile[c][lane] = portable_exp(tile[c][lane] - highest[lane]);
      total[lane] += tile[c][lane];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) bound[lane] = likely_from * total[lane];
  for (int64_t c = 1; c < num_classes; ++c) {
    uint32_t mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) mask |= static_cast<uint32_t>(tile[c][lane] > bound[lane]) << lane;
    likely[c] = mask;
    if (mask == 0) continue;
    for (int lane = 0; lane < kLanes; ++lane) tile[c][lane] /= total[lane];
  }
}

// Times the sum of an anchor's exponentials, what one of them exceeds if its score may exceed the threshold. The sum is
// between 1 and C; the margin is more than the error of product and quotient, where they are not subnormal.
float likely_from(float threshold) { return threshold > 1e-30f ? threshold * (1 - 1.0f / (1 << 20)) : -1.0f; }

void append_candidates(const LevelAnchors& level, int64_t num_classes, float threshold, DetectScratch& scratch,
                       Candidates& candidates) {
  auto* const tile = reinterpret_cast<TileRow*>(scratch.tile.reserve(num_classes * kLanes));
  uint32_t* const likely = scratch.likely.reserve(num_classes);
  const float from = likely_from(threshold);
  for (int64_t first = 0; first < level.count; first += kLanes) {
    const int used = static_cast<int>(std::min<int64_t>(kLanes, level.count - first));
    int64_t rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) rows[lane] = level.begin[first + std::min(lane, used - 1)] * num_classes;
    score_tile(level.odm_conf, rows, num_classes, from, tile, likely);
    const uint32_t used_lanes = (1u << used) - 1;
    const int64_t first_score = level.first_anchor * num_classes;
    uint64_t* const begin = candidates.room_for(used * num_classes);
    uint64_t* next = begin;
    for (int64_t c = 1; c < num_classes; ++c) {
      for (uint32_t mask = likely[c] & used_lanes; mask != 0; mask &= mask - 1) {
        const int lane = std::countr_zero(mask);
        *next = descending_key(tile[c][lane], static_cast<uint32_t>(first_score + rows[lane] + c));
        next += tile[c][lane] > threshold;
      }
    }
    candidates.count += next - begin;
  }
}

// --- Suppression ------------------------------------------------------------------------------------------------------

struct BoxTile {
  TileRow x1, y1, x2, y2, area;
};

// Rows cx, cy, w, h of anchors and offsets, which they come to move.
REFINEDET_VECTOR_CLONES
void decode_tile(TileRow* anchors, const TileRow* offsets, Variances variances) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const Center anchor{anchors[0][lane], anchors[1][lane], anchors[2][lane], anchors[3][lane]};
    const Center offset{offsets[0][lane], offsets[1][lane], offsets[2][lane], offsets[3][lane]};
    const Center moved = decode(anchor, offset, variances);
    anchors[0][lane] = moved.cx;
    anchors[1][lane] = moved.cy;
    anchors[2][lane] = moved.w;
    anchors[3][lane] = moved.h;
  }
}

REFINEDET_VECTOR_CLONES
void to_corners_tile(const TileRow* centers, BoxTile* boxes) {
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
    const bool cascade = in_.levels[0].arm_loc != nullptr;
    TileRow centers[4], arm[4], odm[4];
    for (int lane = 0; lane < kLanes; ++lane) {
      const DetectLevel* level = in_.levels;
      int64_t row = anchors[lane];
      for (; row >= level->num_anchors; ++level) row -= level->num_anchors;
      row += image_ * level->num_anchors;
      for (int i = 0; i < 4; ++i) {
        centers[i][lane] = in_.anchors[4 * int64_t{anchors[lane]} + i];
        odm[i][lane] = floats(level->odm_loc)[4 * row + i];
        if (cascade) arm[i][lane] = floats(level->arm_loc)[4 * row + i];
      }
    }
    if (cascade) decode_tile(centers, arm, options_.variances);
    decode_tile(centers, odm, options_.variances);
    to_corners_tile(centers, boxes);
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
  for (int64_t image = 0; image < in.batch; ++image) {
    const ThreadScratch<DetectScratch> scratch;
    const auto levels = filter_image(in, filter, image, scratch->anchors);
    Candidates& candidates = scratch->candidates;
    candidates.count = 0;
    for (int l = 0; l < in.num_levels; ++l) append_candidates(levels[l], in.num_classes, options.score_threshold, *scratch, candidates);
    ImageSuppression(in, options, out, image, *scratch).run(candidates.keys.data(), candidates.count);
  }
}

}  // namespace refinedet::cpu
