#include "ops/match/match.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Corners kNowhere = {kInfinity, kInfinity, -kInfinity, -kInfinity};  // overlaps nothing

constexpr int64_t kLanes = 16;
constexpr int64_t kBlock = kLanes;  // anchors compared at once: some cells of a feature map row, so a small region
constexpr int64_t kBlocks = 128;    // of a chunk; a multiple of kLanes
constexpr int64_t kChunk = kBlocks * kBlock;  // anchors of one work item
constexpr int64_t kMinQueue = 64;             // candidates a ground truth remembers when it searches for another anchor

// Work that is worth a thread, some 20 us: anchors times the ground truths of their image, with as much as 8 of these
// for what an anchor costs without any.
constexpr int64_t kTask = 1 << 17;
constexpr int64_t kAnchorCost = 8;
constexpr int64_t kAssignments = 256;  // the same in step 1: ground truths

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

// Consecutive anchors and the bounds of their blocks, one array per coordinate so that comparing them vectorises.
// Behind the last anchor of an image are some that overlap nothing.
struct Chunk {
  float x1[kChunk], y1[kChunk], x2[kChunk], y2[kChunk], area[kChunk];
  float left[kBlocks], top[kBlocks], right[kBlocks], bottom[kBlocks];
};

struct Image {
  const Center* anchors;
  const Chunk* chunks;  // of these anchors, or null: to be made from them
  int64_t num_anchors;
  const GroundTruth* truths;
  int64_t num_truths;
};

std::vector<GroundTruth> load_truths(const float* boxes, int64_t count) {
  std::vector<GroundTruth> truths(count);
  for (int64_t i = 0; i < count; ++i) {
    const Corners box = {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
    truths[i] = finite(box) ? GroundTruth{box, area(box)} : GroundTruth{kNowhere, 0.0f};
  }
  return truths;
}

// max or min of a block, by halves: a vector instruction each
template <class Choose>
[[gnu::always_inline]] inline float reduce(const float* values, const Choose& choose) {
  float eight[8], four[4];
  for (int64_t k = 0; k < 8; ++k) eight[k] = choose(values[k], values[k + 8]);
  for (int64_t k = 0; k < 4; ++k) four[k] = choose(eight[k], eight[k + 4]);
  return choose(choose(four[0], four[2]), choose(four[1], four[3]));
}

[[gnu::always_inline]] inline float smallest(const float* values) {
  return reduce(values, [](float a, float b) { return b < a ? b : a; });
}

[[gnu::always_inline]] inline float largest(const float* values) {
  return reduce(values, [](float a, float b) { return b > a ? b : a; });
}

[[gnu::always_inline]] inline void load_block(const Center* anchors, int64_t block, Chunk& chunk) {
  const int64_t first = block * kBlock;
  float* const x1 = chunk.x1 + first;
  float* const y1 = chunk.y1 + first;
  float* const x2 = chunk.x2 + first;
  float* const y2 = chunk.y2 + first;
  for (int64_t i = 0; i < kBlock; ++i) {
    const Center anchor = anchors[i];
    const bool usable = finite(anchor.cx) & finite(anchor.cy) & finite(anchor.w) & finite(anchor.h);
    const Corners box = to_corners(anchor);
    x1[i] = usable ? box.x1 : kNowhere.x1;
    y1[i] = usable ? box.y1 : kNowhere.y1;
    x2[i] = usable ? box.x2 : kNowhere.x2;
    y2[i] = usable ? box.y2 : kNowhere.y2;
    chunk.area[first + i] = area({x1[i], y1[i], x2[i], y2[i]});
  }
  chunk.left[block] = smallest(x1);
  chunk.top[block] = smallest(y1);
  chunk.right[block] = largest(x2);
  chunk.bottom[block] = largest(y2);
}

// Blocks behind the last anchor get bounds that nothing touches, and no boxes.
REFINEDET_VECTOR_CLONES
void load_chunk(const Center* anchors, int64_t count, Chunk& chunk) {
  const int64_t whole = count / kBlock, rest = count % kBlock;
  for (int64_t block = 0; block < whole; ++block) load_block(anchors + block * kBlock, block, chunk);
  if (whole == kBlocks) return;
  Center padded[kBlock];
  std::fill_n(padded, kBlock, Center{kInfinity, kInfinity, 0.0f, 0.0f});
  std::copy_n(anchors + whole * kBlock, rest, padded);
  load_block(padded, whole, chunk);
  std::fill(chunk.left + whole + 1, chunk.left + kBlocks, kNowhere.x1);
  std::fill(chunk.top + whole + 1, chunk.top + kBlocks, kNowhere.y1);
  std::fill(chunk.right + whole + 1, chunk.right + kBlocks, kNowhere.x2);
  std::fill(chunk.bottom + whole + 1, chunk.bottom + kBlocks, kNowhere.y2);
}

// The chunk of the image that begins at anchor `first`; `space` has room for it.
const Chunk& chunk_at(const Image& image, int64_t first, Chunk& space) {
  if (image.chunks != nullptr) return image.chunks[first / kChunk];
  load_chunk(image.anchors + first, std::min(kChunk, image.num_anchors - first), space);
  return space;
}

// Which of kLanes blocks from `first` on have bounds that touch the box, as bits.
[[gnu::always_inline]] inline uint32_t touching(const Chunk& chunk, int64_t first, const Corners& box) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < kLanes; ++k) {
    const int64_t i = first + k;
    const bool hit =
        (chunk.left[i] < box.x2) & (box.x1 < chunk.right[i]) & (chunk.top[i] < box.y2) & (box.y1 < chunk.bottom[i]);
    bits |= hit ? 1u << k : 0u;
  }
  return bits;
}

// Calls visit(first, ious) for the blocks whose bounds touch the ground truth, in ascending order.
template <class Visit>
[[gnu::always_inline]] inline void visit_touched(const Chunk& chunk, const GroundTruth& truth, const Visit& visit) {
  float ious[kBlock];
  for (int64_t group = 0; group < kBlocks; group += kLanes) {
    for (uint32_t bits = touching(chunk, group, truth.box); bits != 0; bits &= bits - 1) {
      const int64_t first = (group + std::countr_zero(bits)) * kBlock;
      for (int64_t k = 0; k < kBlock; ++k) {
        const int64_t i = first + k;
        const Corners anchor = {chunk.x1[i], chunk.y1[i], chunk.x2[i], chunk.y2[i]};
        ious[k] = iou(intersection(anchor, truth.box), chunk.area[i], truth.area);
      }
      visit(first, ious);
    }
  }
}

// Best ground truth of each anchor of a chunk, -1 = none.
struct Best {
  float iou[kChunk];
  int32_t truth[kChunk];
};

// Brings the best of each anchor up to date with ground truth g. Returns the best anchor of g within the chunk, whose
// first anchor is `start`.
REFINEDET_VECTOR_CLONES
Candidate compare(const Chunk& chunk, int64_t start, const GroundTruth& truth, int32_t g, Best& best) {
  float top[kLanes] = {};
  int32_t anchor[kLanes] = {};  // has the IoU `top`; the lowest
  visit_touched(chunk, truth, [&](int64_t first, const float* ious) {
    for (int64_t k = 0; k < kLanes; ++k) {
      const int64_t i = first + k;
      const bool better = ious[k] > best.iou[i];
      best.iou[i] = better ? ious[k] : best.iou[i];
      best.truth[i] = better ? g : best.truth[i];
      const bool higher = ious[k] > top[k];
      top[k] = higher ? ious[k] : top[k];
      anchor[k] = higher ? static_cast<int32_t>(i) : anchor[k];
    }
  });
  Candidate found = kNone;
  for (int64_t k = 0; k < kLanes; ++k) {
    const Candidate lane = {top[k], start + anchor[k]};
    if (lane.iou > 0.0f && lane.before(found)) found = lane;
  }
  return found;
}

// Which anchors of a block are matched with their best ground truth, as bits.
REFINEDET_VECTOR_CLONES
uint32_t matched(const Best& best, int64_t first, float threshold) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < kBlock; ++k) {
    const bool hit = (best.truth[first + k] >= 0) & (best.iou[first + k] >= threshold);
    bits |= hit ? 1u << k : 0u;
  }
  return bits;
}

// Up to `wanted` best free anchors of a ground truth, best last. `found` is scratch space.
REFINEDET_VECTOR_CLONES
std::vector<Candidate> search(const Image& image, const GroundTruth& truth, const std::vector<bool>& taken,
                              int64_t wanted, std::vector<Candidate>& found) {
  found.clear();
  Chunk space;
  for (int64_t start = 0; start < image.num_anchors; start += kChunk) {
    visit_touched(chunk_at(image, start, space), truth, [&](int64_t first, const float* ious) {
      for (int64_t k = 0; k < kBlock; ++k)
        if (ious[k] > 0.0f && !taken[start + first + k]) found.push_back({ious[k], start + first + k});
    });
  }
  const auto before = [](const Candidate& a, const Candidate& b) { return a.before(b); };
  const auto last = found.begin() + std::min<int64_t>(wanted, found.size());
  std::nth_element(found.begin(), last, found.end(), before);
  std::sort(found.begin(), last, before);
  return {std::make_reverse_iterator(last), found.rend()};
}

// Greedy bipartite matching without the matrix: a heap holds each ground truth with the best anchor it knows of. That
// anchor may have been taken since, so the entry on top is either final or is replaced by the next best free anchor.
// Its arrays are used again for the next image.
class Bipartite {
 public:
  // Calls assign(anchor, ground truth) for each pair.
  template <class Assign>
  void match(const Image& image, const Candidate* best_anchor, const Assign& assign) {
    heap_.clear();
    for (int64_t g = 0; g < image.num_truths; ++g)
      if (best_anchor[g].iou > 0.0f) heap_.push_back({best_anchor[g], g});
    if (heap_.empty()) return;
    std::make_heap(heap_.begin(), heap_.end());
    taken_.assign(image.num_anchors, false);
    queues_.clear();
    const int64_t queue_size = std::max(kMinQueue, image.num_anchors / image.num_truths);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      const auto [candidate, g] = heap_.back();
      heap_.pop_back();
      if (!taken_[candidate.anchor]) {
        taken_[candidate.anchor] = true;
        assign(candidate.anchor, g);
        continue;
      }
      queues_.resize(image.num_truths);
      std::vector<Candidate>& queue = queues_[g];
      while (!queue.empty() && taken_[queue.back().anchor]) queue.pop_back();
      if (queue.empty()) queue = search(image, image.truths[g], taken_, queue_size, found_);
      if (queue.empty()) continue;
      heap_.push_back({queue.back(), g});
      std::push_heap(heap_.begin(), heap_.end());
    }
  }

 private:
  struct Entry {
    Candidate candidate;
    int64_t truth;
    bool operator<(const Entry& other) const {  // a heap has the largest on top
      if (other.candidate.before(candidate)) return true;
      return !candidate.before(other.candidate) && other.truth < truth;
    }
  };

  std::vector<Entry> heap_;
  std::vector<bool> taken_;                     // by anchor
  std::vector<std::vector<Candidate>> queues_;  // by ground truth; none until two want one anchor
  std::vector<Candidate> found_;
};

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
    if (in_.shared_anchors && in_.batch > 1) load_shared(chunks);
    const int64_t truths = in_.num_truths / std::max<int64_t>(in_.batch, 1);  // of an image
    const int64_t grain = std::max<int64_t>(1, kTask / (kChunk * (kAnchorCost + truths)));
    parallel_for(0, in_.batch * chunks, grain, [&](int64_t begin, int64_t end) {
      std::vector<Candidate> best_anchor;
      for (int64_t item = begin; item < end; ++item) match_chunk(item / chunks, item % chunks * kChunk, best_anchor);
    });
    parallel_for(0, in_.batch, std::max<int64_t>(1, kAssignments / (1 + truths)), [&](int64_t begin, int64_t end) {
      Bipartite bipartite;
      for (int64_t b = begin; b < end; ++b) {
        const auto assign = [&](int64_t anchor, int64_t truth) { write(b, anchor, truth); };
        bipartite.match(image(b), best_anchor_.data() + in_.gt_offsets[b], assign);
      }
    });
  }

 private:
  // Anchors of all images: their corners, areas and bounds are computed once.
  void load_shared(int64_t chunks) {
    chunks_.reset(new Chunk[chunks]);
    const Image all = image(0);
    for (int64_t i = 0; i < chunks; ++i)
      load_chunk(all.anchors + i * kChunk, std::min(kChunk, all.num_anchors - i * kChunk), chunks_[i]);
  }

  Image image(int64_t b) const {
    const float* anchors = in_.anchors + (in_.shared_anchors ? 0 : 4 * b * in_.num_anchors);
    const int64_t first = in_.gt_offsets[b], last = in_.gt_offsets[b + 1];
    return {reinterpret_cast<const Center*>(anchors), chunks_.get(), in_.num_anchors, truths_.data() + first,
            last - first};
  }

  // Per-prediction matching of some anchors; also brings best_anchor_ up to date. `best_anchor` is scratch space.
  void match_chunk(int64_t b, int64_t first, std::vector<Candidate>& best_anchor) {
    const Image img = image(b);
    const int64_t count = std::min(kChunk, img.num_anchors - first);
    clear(b, first, count);
    Chunk space;
    const Chunk& chunk = chunk_at(img, first, space);
    Best best;
    const int64_t blocks = (count + kBlock - 1) / kBlock;
    std::fill_n(best.iou, blocks * kBlock, 0.0f);
    std::memset(best.truth, -1, blocks * kBlock * sizeof(int32_t));
    best_anchor.resize(img.num_truths);
    for (int64_t g = 0; g < img.num_truths; ++g)
      best_anchor[g] = compare(chunk, first, img.truths[g], static_cast<int32_t>(g), best);
    std::copy_n(best.iou, count, out_.ious + b * in_.num_anchors + first);
    for (int64_t i = 0; i < blocks * kBlock; i += kBlock) {
      for (uint32_t bits = matched(best, i, options_.iou_threshold); bits != 0; bits &= bits - 1) {
        const int64_t anchor = i + std::countr_zero(bits);
        write(b, first + anchor, best.truth[anchor]);
      }
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t g = 0; g < img.num_truths; ++g) {
      Candidate& all = best_anchor_[in_.gt_offsets[b] + g];
      if (best_anchor[g].before(all)) all = best_anchor[g];
    }
  }

  void clear(int64_t b, int64_t first, int64_t count) const {
    const int64_t at = b * in_.num_anchors + first;
    std::fill_n(out_.labels + at, count, 0);
    std::fill_n(out_.targets + 4 * at, 4 * count, 0.0f);
    std::memset(out_.indices + at, -1, count * sizeof(int64_t));
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
  std::unique_ptr<Chunk[]> chunks_;     // of shared anchors, where several images have them
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
