#include "ops/match/match.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <queue>
#include <vector>

#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Corners kNowhere = {kInfinity, kInfinity, -kInfinity, -kInfinity};  // overlaps nothing

constexpr int64_t kBlock = 64;           // anchors compared at once: some cells of a feature map row, so a small region
constexpr int64_t kChunk = 32 * kBlock;  // anchors of one work item
constexpr int64_t kMinQueue = 64;        // candidates a ground truth remembers when it searches for another anchor

struct GroundTruth {
  Corners box;
  float area;
};

// An anchor as seen from a ground truth. Order: larger IoU first, then lower anchor.
struct Candidate {
  float iou;
  int64_t anchor;
  bool before(const Candidate& other) const { return iou != other.iou ? iou > other.iou : anchor < other.anchor; }
};

constexpr Candidate kNone = {0.0f, std::numeric_limits<int64_t>::max()};

// Consecutive anchors, one array per coordinate so that comparing them vectorises.
struct Block {
  float x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  Corners bounds;
};

struct Image {
  const Center* anchors;
  int64_t num_anchors;
  const GroundTruth* truths;
  int64_t num_truths;
};

bool touch(const Corners& a, const Corners& b) { return a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2; }

std::vector<GroundTruth> load_truths(const float* boxes, int64_t count) {
  std::vector<GroundTruth> truths(count);
  for (int64_t i = 0; i < count; ++i) {
    const Corners box = {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
    truths[i] = finite(box) ? GroundTruth{box, area(box)} : GroundTruth{kNowhere, 0.0f};
  }
  return truths;
}

// max or min of a block, in independent lanes so that the loop vectorises
template <class Choose>
[[gnu::always_inline]] inline float reduce(const float* values, const Choose& choose) {
  constexpr int64_t lanes = 16;
  float result[lanes];
  std::copy_n(values, lanes, result);
  for (int64_t i = lanes; i < kBlock; i += lanes)
    for (int64_t k = 0; k < lanes; ++k) result[k] = choose(result[k], values[i + k]);
  return std::accumulate(result + 1, result + lanes, result[0], choose);
}

[[gnu::always_inline]] inline float smallest(const float* values) {
  return reduce(values, [](float a, float b) { return b < a ? b : a; });
}

[[gnu::always_inline]] inline float largest(const float* values) {
  return reduce(values, [](float a, float b) { return b > a ? b : a; });
}

[[gnu::always_inline]] inline void load_block(const Center* anchors, int64_t count, Block& block) {
  Center padded[kBlock];
  if (count < kBlock) {
    std::fill(std::copy_n(anchors, count, padded), padded + kBlock, Center{kInfinity, kInfinity, 0.0f, 0.0f});
    anchors = padded;
  }
  for (int64_t i = 0; i < kBlock; ++i) {
    const Center anchor = anchors[i];
    const bool usable = finite(anchor.cx) & finite(anchor.cy) & finite(anchor.w) & finite(anchor.h);
    const Corners box = to_corners(anchor);
    block.x1[i] = usable ? box.x1 : kNowhere.x1;
    block.y1[i] = usable ? box.y1 : kNowhere.y1;
    block.x2[i] = usable ? box.x2 : kNowhere.x2;
    block.y2[i] = usable ? box.y2 : kNowhere.y2;
    block.area[i] = area({block.x1[i], block.y1[i], block.x2[i], block.y2[i]});
  }
  block.bounds = {smallest(block.x1), smallest(block.y1), largest(block.x2), largest(block.y2)};
}

[[gnu::always_inline]] inline void block_ious(const Block& block, const GroundTruth& truth, float* ious) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const Corners anchor = {block.x1[i], block.y1[i], block.x2[i], block.y2[i]};
    ious[i] = iou(intersection(anchor, truth.box), block.area[i], truth.area);
  }
}

// Best ground truth of each anchor of the block from `first` on (best_iou, best_truth) and, the other way round, best
// anchor of each ground truth (best_anchor).
REFINEDET_VECTOR_CLONES
void compare_block(const Image& image, int64_t first, float* best_iou, int32_t* best_truth, Candidate* best_anchor) {
  Block block;
  float ious[kBlock];
  load_block(image.anchors + first, std::min(kBlock, image.num_anchors - first), block);
  std::fill_n(best_iou, kBlock, 0.0f);
  std::fill_n(best_truth, kBlock, -1);
  for (int64_t g = 0; g < image.num_truths; ++g) {
    if (!touch(block.bounds, image.truths[g].box)) continue;
    block_ious(block, image.truths[g], ious);
    for (int64_t i = 0; i < kBlock; ++i) {
      const bool better = ious[i] > best_iou[i];
      best_iou[i] = better ? ious[i] : best_iou[i];
      best_truth[i] = better ? static_cast<int32_t>(g) : best_truth[i];
    }
    const float top = largest(ious);
    if (top > best_anchor[g].iou) best_anchor[g] = {top, first + (std::find(ious, ious + kBlock, top) - ious)};
  }
}

// Up to `wanted` best free anchors of a ground truth, best last. `found` is scratch space.
REFINEDET_VECTOR_CLONES
std::vector<Candidate> search(const Image& image, const GroundTruth& truth, const std::vector<bool>& taken,
                              int64_t wanted, std::vector<Candidate>& found) {
  found.clear();
  Block block;
  float ious[kBlock];
  for (int64_t first = 0; first < image.num_anchors; first += kBlock) {
    load_block(image.anchors + first, std::min(kBlock, image.num_anchors - first), block);
    if (!touch(block.bounds, truth.box)) continue;
    block_ious(block, truth, ious);
    for (int64_t i = 0; i < kBlock; ++i)
      if (ious[i] > 0.0f && !taken[first + i]) found.push_back({ious[i], first + i});
  }
  const auto before = [](const Candidate& a, const Candidate& b) { return a.before(b); };
  const auto last = found.begin() + std::min<int64_t>(wanted, found.size());
  std::nth_element(found.begin(), last, found.end(), before);
  std::sort(found.begin(), last, before);
  return {std::make_reverse_iterator(last), found.rend()};
}

// Greedy bipartite matching without the matrix: a heap holds each ground truth with the best anchor it knows of. That
// anchor may have been taken since, so the entry on top is either final or is replaced by the next best free anchor.
// Calls assign(anchor, ground truth) for each pair.
template <class Assign>
void match_bipartite(const Image& image, const std::vector<Candidate>& best_anchor, const Assign& assign) {
  struct Entry {
    Candidate candidate;
    int64_t truth;
    bool operator<(const Entry& other) const {  // std::priority_queue has the largest on top
      if (other.candidate.before(candidate)) return true;
      return !candidate.before(other.candidate) && other.truth < truth;
    }
  };
  std::priority_queue<Entry> heap;
  for (int64_t g = 0; g < image.num_truths; ++g)
    if (best_anchor[g].iou > 0.0f) heap.push({best_anchor[g], g});
  std::vector<bool> taken(image.num_anchors);
  std::vector<std::vector<Candidate>> queues(image.num_truths);
  std::vector<Candidate> scratch;
  const int64_t queue_size = std::max(kMinQueue, image.num_anchors / std::max<int64_t>(image.num_truths, 1));
  while (!heap.empty()) {
    const Entry entry = heap.top();
    heap.pop();
    const int64_t g = entry.truth;
    if (!taken[entry.candidate.anchor]) {
      taken[entry.candidate.anchor] = true;
      assign(entry.candidate.anchor, g);
      continue;
    }
    std::vector<Candidate>& queue = queues[g];
    while (!queue.empty() && taken[queue.back().anchor]) queue.pop_back();
    if (queue.empty()) queue = search(image, image.truths[g], taken, queue_size, scratch);
    if (!queue.empty()) heap.push({queue.back(), g});
  }
}

class Matcher {
 public:
  Matcher(const MatchInputs& in, const MatchOptions& options, const MatchOutputs& out)
      : in_(in),
        options_(options),
        out_(out),
        truths_(load_truths(in.gt_boxes, in.num_truths)),
        best_anchor_(truths_.size(), kNone) {}

  void run() {
    const int64_t chunks = (in_.num_anchors + kChunk - 1) / kChunk;
    parallel_for(0, in_.batch * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) match_chunk(item / chunks, item % chunks * kChunk);
    });
    parallel_for(0, in_.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) match_best(b);
    });
  }

 private:
  Image image(int64_t b) const {
    const float* anchors = in_.anchors + (in_.shared_anchors ? 0 : 4 * b * in_.num_anchors);
    const int64_t first = in_.gt_offsets[b], last = in_.gt_offsets[b + 1];
    return {reinterpret_cast<const Center*>(anchors), in_.num_anchors, truths_.data() + first, last - first};
  }

  // Per-prediction matching of some anchors; also brings best_anchor_ up to date.
  void match_chunk(int64_t b, int64_t first) {
    const Image img = image(b);
    const int64_t last = std::min(first + kChunk, img.num_anchors);
    std::vector<Candidate> best_anchor(img.num_truths, kNone);
    float best_iou[kBlock];
    int32_t best_truth[kBlock];
    for (; first < last; first += kBlock) {
      const int64_t count = std::min(kBlock, last - first);
      compare_block(img, first, best_iou, best_truth, best_anchor.data());
      clear(b, first, count);
      std::copy_n(best_iou, count, out_.ious + b * in_.num_anchors + first);
      for (int64_t i = 0; i < count; ++i)
        if (best_truth[i] >= 0 && best_iou[i] >= options_.iou_threshold) write(b, first + i, best_truth[i]);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t g = 0; g < img.num_truths; ++g) {
      Candidate& best = best_anchor_[in_.gt_offsets[b] + g];
      if (best_anchor[g].before(best)) best = best_anchor[g];
    }
  }

  void match_best(int64_t b) {
    const auto first = best_anchor_.begin() + in_.gt_offsets[b], last = best_anchor_.begin() + in_.gt_offsets[b + 1];
    match_bipartite(image(b), {first, last}, [&](int64_t anchor, int64_t truth) { write(b, anchor, truth); });
  }

  void clear(int64_t b, int64_t first, int64_t count) const {
    const int64_t at = b * in_.num_anchors + first;
    std::fill_n(out_.labels + at, count, 0);
    std::fill_n(out_.targets + 4 * at, 4 * count, 0.0f);
    std::fill_n(out_.indices + at, count, -1);
  }

  void write(int64_t b, int64_t anchor, int64_t truth) const {
    const int64_t at = b * in_.num_anchors + anchor;
    out_.indices[at] = truth;
    out_.labels[at] = in_.gt_labels[in_.gt_offsets[b] + truth];
    encode(image(b).truths[truth].box, image(b).anchors[anchor], out_.targets + 4 * at);
  }

  void encode(const Corners& box, const Center& anchor, float* target) const {
    target[0] = ((box.x1 + box.x2) * 0.5f - anchor.cx) / anchor.w / options_.variances.x;
    target[1] = ((box.y1 + box.y2) * 0.5f - anchor.cy) / anchor.h / options_.variances.y;
    target[2] = std::log((box.x2 - box.x1) / anchor.w) / options_.variances.w;
    target[3] = std::log((box.y2 - box.y1) / anchor.h) / options_.variances.h;
  }

  const MatchInputs& in_;
  const MatchOptions& options_;
  const MatchOutputs& out_;
  const std::vector<GroundTruth> truths_;
  std::vector<Candidate> best_anchor_;  // of each ground truth
  std::mutex mutex_;                    // guards best_anchor_
};

}  // namespace

std::string match_limits(const MatchInputs& in, const MatchOptions&) {
  return exceeded({{"the number of ground truths", in.num_truths, MatchLimits::kMaxTruths}}, "the CPU");
}

void match(const MatchInputs& in, const MatchOptions& options, const MatchOutputs& out) {
  Matcher(in, options, out).run();
}

}  // namespace refinedet::cpu
