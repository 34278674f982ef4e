#include "ops/detect/detect.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "cpu/kept_boxes.h"
#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

constexpr int kLanes = 16;          // anchors that go through a vector function together
constexpr int64_t kBlock = 512;     // anchors per task: few enough to balance threads, enough to pay for one
constexpr int64_t kMinChunk = 256;  // candidates sorted at a time
static_assert(kBlock % kLanes == 0);

// One row per class or coordinate, one column per anchor.
using TileRow = float[kLanes];

const float* floats(const void* elements) { return static_cast<const float*>(elements); }

Center load(const float* rows, int64_t i) { return {rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]}; }

// Anchors of a level that are scored together.
struct Block {
  const DetectLevel* level;
  int64_t first_anchor;  // of the level, among all anchors
  int64_t begin, end;    // within the level
};

// The blocks of an image.
std::vector<Block> list_blocks(const DetectInputs& in) {
  std::vector<Block> blocks;
  int64_t first_anchor = 0;
  for (const DetectLevel* level = in.levels; level != in.levels + in.num_levels; ++level) {
    for (int64_t begin = 0; begin < level->num_anchors; begin += kBlock) {
      blocks.push_back({level, first_anchor, begin, std::min(begin + kBlock, level->num_anchors)});
    }
    first_anchor += level->num_anchors;
  }
  return blocks;
}

REFINEDET_VECTOR_CLONES
void objectness_at_least(const float* arm_conf, int64_t count, float threshold, uint8_t* keep) {
  for (int64_t i = 0; i < count; ++i) keep[i] = objectness(arm_conf[2 * i], arm_conf[2 * i + 1]) >= threshold;
}

// Anchors in [begin, end) that pass the filter; `arm_conf` is the level's, of one image.
std::vector<uint32_t> filter_anchors(const float* arm_conf, int64_t begin, int64_t end, float threshold) {
  std::vector<uint32_t> survivors(end - begin + 1);  // every anchor is written, the next one overwrites what goes
  uint8_t keep[kBlock] = {};
  objectness_at_least(arm_conf + 2 * begin, end - begin, threshold, keep);
  size_t count = 0;
  for (int64_t first = 0; first < end - begin; first += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {  // a fixed number, so that the compiler unrolls it
      survivors[count] = static_cast<uint32_t>(begin + first + lane);
      count += keep[first + lane];
    }
  }
  survivors.resize(count);
  return survivors;
}

std::vector<uint32_t> all_anchors(int64_t begin, int64_t end) {
  std::vector<uint32_t> survivors(end - begin);
  for (int64_t i = begin; i < end; ++i) survivors[i - begin] = static_cast<uint32_t>(i);
  return survivors;
}

// Turns the logits of 16 anchors into scores; bit l of passed[c]: anchor l passes the threshold in class c.
REFINEDET_VECTOR_CLONES
void score_tile(TileRow* tile, int64_t num_classes, float threshold, uint32_t* passed) {
  TileRow highest, total;
  for (int lane = 0; lane < kLanes; ++lane) {
    highest[lane] = tile[0][lane];
    total[lane] = 0.0f;
  }
  for (int64_t c = 1; c < num_classes; ++c) {
    for (int lane = 0; lane < kLanes; ++lane) {
      highest[lane] = tile[c][lane] > highest[lane] ? tile[c][lane] : highest[lane];
    }
  }
  for (int64_t c = 0; c < num_classes; ++c) {
    for (int lane = 0; lane < kLanes; ++lane) {
      tile[c][lane] = portable_exp(tile[c][lane] - highest[lane]);
      total[lane] += tile[c][lane];
    }
  }
  for (int64_t c = 1; c < num_classes; ++c) {
    uint32_t mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      tile[c][lane] /= total[lane];
      mask |= static_cast<uint32_t>(tile[c][lane] > threshold) << lane;
    }
    passed[c] = mask;
  }
}

// Appends the candidates among `anchors` of a level as descending_key(score, anchor * C + class), where the anchors of
// the level count from `first_anchor`.
void append_candidates(const float* odm_conf, int64_t num_classes, float threshold, int64_t first_anchor,
                       const std::vector<uint32_t>& anchors, std::vector<uint64_t>& candidates) {
  std::vector<float> storage(num_classes * kLanes);
  auto* tile = reinterpret_cast<TileRow*>(storage.data());
  std::vector<uint32_t> passed(num_classes);
  for (size_t first = 0; first < anchors.size(); first += kLanes) {
    const int count = static_cast<int>(std::min<size_t>(kLanes, anchors.size() - first));
    for (int lane = 0; lane < count; ++lane) {
      const float* logits = odm_conf + anchors[first + lane] * num_classes;
      for (int64_t c = 0; c < num_classes; ++c) tile[c][lane] = logits[c];
    }
    score_tile(tile, num_classes, threshold, passed.data());
    const uint32_t used_lanes = (1u << count) - 1;
    for (int64_t c = 1; c < num_classes; ++c) {
      for (uint32_t mask = passed[c] & used_lanes; mask != 0; mask &= mask - 1) {
        const int lane = std::countr_zero(mask);
        const auto flat = static_cast<uint32_t>((first_anchor + anchors[first + lane]) * num_classes + c);
        candidates.push_back(descending_key(tile[c][lane], flat));
      }
    }
  }
}

std::vector<uint64_t> block_candidates(const Block& block, int64_t image, int64_t num_classes,
                                       const DetectOptions& options) {
  const DetectLevel& level = *block.level;
  const int64_t first_row = image * level.num_anchors;
  const std::vector<uint32_t> anchors = level.arm_conf == nullptr
                                            ? all_anchors(block.begin, block.end)
                                            : filter_anchors(floats(level.arm_conf) + first_row * 2, block.begin,
                                                             block.end, options.objectness_threshold);
  std::vector<uint64_t> candidates;
  append_candidates(floats(level.odm_conf) + first_row * num_classes, num_classes, options.score_threshold,
                    block.first_anchor, anchors, candidates);
  return candidates;
}

REFINEDET_VECTOR_CLONES
void decode_boxes(const DetectInputs& in, Variances variances, int64_t image, const uint64_t* keys, int64_t count,
                  Corners* boxes) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t anchor = key_index(keys[i]) / static_cast<uint32_t>(in.num_classes);
    const DetectLevel* level = in.levels;
    int64_t row = anchor;
    for (; row >= level->num_anchors; ++level) row -= level->num_anchors;
    row += image * level->num_anchors;
    Center box = load(in.anchors, anchor);
    if (level->arm_loc != nullptr) box = decode(box, load(floats(level->arm_loc), row), variances);
    boxes[i] = to_corners(decode(box, load(floats(level->odm_loc), row), variances));
  }
}

// Walks the candidates of an image in their order and keeps what no better box of its class suppresses. The order is
// also that of the output, so the walk ends with the last row to fill: only the candidates it meets are sorted and
// decoded.
class ImageSuppression {
 public:
  ImageSuppression(const DetectInputs& in, const DetectOptions& options, const DetectOutputs& out, int64_t image)
      : in_(in), options_(options), out_(out), image_(image), seen_(in.num_classes), kept_(in.num_classes) {}

  void run(std::vector<uint64_t>& keys) {
    auto begin = keys.begin();
    for (int64_t chunk = std::max(kMinChunk, options_.keep_top_k); begin != keys.end() && !full(); chunk *= 2) {
      const auto end = begin + std::min<int64_t>(chunk, keys.end() - begin);
      std::nth_element(begin, end, keys.end());
      std::sort(begin, end);
      keep_best(&*begin, end - begin);
      begin = end;
    }
    pad();
  }

 private:
  bool full() const { return count_ == options_.keep_top_k; }

  void keep_best(const uint64_t* keys, int64_t count) {
    std::vector<Corners> boxes(count);
    decode_boxes(in_, options_.variances, image_, keys, count, boxes.data());
    for (int64_t i = 0; i < count && !full(); ++i) {
      const uint32_t label = key_index(keys[i]) % static_cast<uint32_t>(in_.num_classes);
      if (!finite(boxes[i]) || seen_[label] == options_.top_k) continue;
      ++seen_[label];
      if (kept_[label].suppresses(boxes[i], options_.iou_threshold)) continue;
      kept_[label].add(boxes[i]);
      write(keys[i], boxes[i], label);
    }
  }

  void write(uint64_t key, Corners box, uint32_t label) {
    const int64_t row = image_ * options_.keep_top_k + count_++;
    out_.boxes[4 * row] = box.x1;
    out_.boxes[4 * row + 1] = box.y1;
    out_.boxes[4 * row + 2] = box.x2;
    out_.boxes[4 * row + 3] = box.y2;
    out_.scores[row] = key_score(key);
    out_.labels[row] = label;
    out_.indices[row] = key_index(key) / static_cast<uint32_t>(in_.num_classes);
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
  std::vector<int64_t> seen_;    // candidates met per class, suppressed ones included
  std::vector<KeptBoxes> kept_;  // per class
};

}  // namespace

std::string detect_limits(const DetectInputs& in, const DetectOptions&) {
  return exceeded({{"the number of anchors", in.num_anchors, DetectLimits::kMaxScores / in.num_classes}}, "the CPU");
}

void detect(const DetectInputs& in, const DetectOptions& options, const DetectOutputs& out) {
  const std::vector<Block> blocks = list_blocks(in);
  const auto count = static_cast<int64_t>(blocks.size());
  std::vector<std::vector<uint64_t>> candidates(in.batch * count);
  parallel_for(0, in.batch * count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      candidates[i] = block_candidates(blocks[i % count], i / count, in.num_classes, options);
    }
  });
  parallel_for(0, in.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      size_t total = 0;
      for (int64_t i = image * count; i < (image + 1) * count; ++i) total += candidates[i].size();
      std::vector<uint64_t> keys;
      keys.reserve(total);
      for (int64_t i = image * count; i < (image + 1) * count; ++i) {
        keys.insert(keys.end(), candidates[i].begin(), candidates[i].end());
      }
      ImageSuppression(in, options, out, image).run(keys);
    }
  });
}

}  // namespace refinedet::cpu
