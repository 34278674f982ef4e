#include "ops/vote/vote.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

struct Candidate {
  int64_t label;  // above 0
  uint64_t key;   // orders a class: descending_key(score, row)
};

// Sorts by value(candidate), byte by byte, those that all have in common left out; equal ones keep their order. Labels
// differ in a byte or two, which makes this several times faster than comparing pairs of label and key.
template <class Value>
void sort_by(std::vector<Candidate>* candidates, const Value& value) {
  uint64_t differing = 0;
  for (const Candidate& candidate : *candidates) differing |= value(candidate) ^ value(candidates->front());
  std::vector<Candidate> sorted(candidates->size());
  for (int shift = 0; shift < 64; shift += 8) {
    if ((differing >> shift & 0xff) == 0) continue;
    size_t starts[257] = {};
    for (const Candidate& candidate : *candidates) ++starts[(value(candidate) >> shift & 0xff) + 1];
    std::partial_sum(starts, starts + 257, starts);
    for (const Candidate& candidate : *candidates) sorted[starts[value(candidate) >> shift & 0xff]++] = candidate;
    candidates->swap(sorted);
  }
}

// The boxes, scores and results of an image.
struct Image {
  const float* boxes;
  const float* scores;
  const int64_t* labels;
  float* found_boxes;
  float* found_scores;

  Corners box(int64_t i) const { return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]}; }

  void store(int64_t i, Corners box, float score) const {
    found_boxes[4 * i] = box.x1;
    found_boxes[4 * i + 1] = box.y1;
    found_boxes[4 * i + 2] = box.x2;
    found_boxes[4 * i + 3] = box.y2;
    found_scores[i] = score;
  }
};

struct Cluster {
  int64_t row;  // of the top
  Corners top;
  Ballot sum;
  bool joined;  // by another box
};

// The tops of a class, laid out so that a box meets 16 of them per vector step.
class Tops {
 public:
  explicit Tops(float pixel) : pixel_(pixel) {}

  void add(Corners box) {
    const size_t lane = count_ % kLanes;
    if (lane == 0) blocks_.emplace_back();  // zeros, which are not looked at
    Block& block = blocks_.back();
    block.x1[lane] = box.x1;
    block.y1[lane] = box.y1;
    block.x2[lane] = box.x2;
    block.y2[lane] = box.y2;
    block.area[lane] = area(box, pixel_);
    ++count_;
  }

  // The first top whose IoU with the box reaches the threshold; their number if there is none.
  size_t first_reached(Corners box, float threshold) const {
    return std::min(find(blocks_.data(), blocks_.size(), box, pixel_, threshold), count_);
  }

 private:
  static constexpr int kLanes = 16;

  struct Block {
    float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];
  };

  static size_t find(const Block* blocks, size_t count, Corners box, float pixel, float threshold);

  std::vector<Block> blocks_;
  size_t count_ = 0;
  float pixel_;
};

REFINEDET_VECTOR_CLONES
size_t Tops::find(const Block* blocks, size_t count, Corners box, float pixel, float threshold) {
  const float box_area = area(box, pixel);
  for (size_t i = 0; i < count; ++i) {
    const Block& tops = blocks[i];
    int32_t hits[kLanes], any = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const Corners top{tops.x1[lane], tops.y1[lane], tops.x2[lane], tops.y2[lane]};
      const float iou = any_iou(intersection(top, box, pixel), tops.area[lane], box_area);
      hits[lane] = iou >= threshold;
      any |= hits[lane];
    }
    if (any != 0) return i * kLanes + (std::find(hits, hits + kLanes, 1) - hits);
  }
  return count * kLanes;
}

std::vector<Candidate> usable_candidates(const Image& image, int64_t num_boxes) {
  std::vector<Candidate> candidates;
  candidates.reserve(num_boxes);
  for (int64_t i = 0; i < num_boxes; ++i) {
    const bool is_number = image.scores[i] == image.scores[i];
    if (image.labels[i] > 0 && is_number && finite(image.box(i))) {
      candidates.push_back({image.labels[i], descending_key(image.scores[i], static_cast<uint32_t>(i))});
    }
  }
  return candidates;
}

// Places in the sorted candidates where a class begins, and their end.
std::vector<size_t> class_bounds(const std::vector<Candidate>& candidates) {
  std::vector<size_t> bounds;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (i == 0 || candidates[i].label != candidates[i - 1].label) bounds.push_back(i);
  }
  bounds.push_back(candidates.size());
  return bounds;
}

void vote_in_class(const Image& image, const Candidate* begin, const Candidate* end, const VoteOptions& options) {
  const float pixel = options.official ? 1.0f : 0.0f;
  Tops tops(pixel);
  std::vector<Cluster> clusters;
  clusters.reserve(end - begin);
  for (const Candidate* candidate = begin; candidate != end; ++candidate) {
    const int64_t row = key_index(candidate->key);
    const Corners box = image.box(row);
    const float score = image.scores[row];
    const size_t found = tops.first_reached(box, options.iou_threshold);
    if (found == clusters.size()) {
      tops.add(box);
      clusters.push_back({row, box, ballot_of(box, score), false});
      continue;
    }
    Cluster& cluster = clusters[found];
    cluster.sum = cluster.sum + ballot_of(box, score);
    cluster.joined = true;
    if (!options.soft) continue;
    const float iou = any_iou(intersection(cluster.top, box, pixel), area(cluster.top, pixel), area(box, pixel));
    const float left = score * (1.0f - iou);
    if (left >= options.score_threshold) image.store(row, box, left);
  }
  for (const Cluster& cluster : clusters) {
    const Corners box = cluster.joined ? elected(cluster.sum, cluster.top) : cluster.top;
    image.store(cluster.row, box, image.scores[cluster.row]);
  }
}

void vote_in_image(const Image& image, int64_t num_boxes, const VoteOptions& options) {
  std::fill_n(image.found_boxes, 4 * num_boxes, 0.0f);
  std::fill_n(image.found_scores, num_boxes, std::numeric_limits<float>::quiet_NaN());
  std::vector<Candidate> candidates = usable_candidates(image, num_boxes);
  sort_by(&candidates, [](const Candidate& c) { return c.key >> 32; });  // rows ascend already
  sort_by(&candidates, [](const Candidate& c) { return static_cast<uint64_t>(c.label); });
  const std::vector<size_t> bounds = class_bounds(candidates);
  parallel_for(0, static_cast<int64_t>(bounds.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      vote_in_class(image, candidates.data() + bounds[c], candidates.data() + bounds[c + 1], options);
    }
  });
}

}  // namespace

std::string vote_limits(const VoteInputs& in, const VoteOptions&) {
  return exceeded({{"the number of boxes", in.num_boxes, VoteLimits::kMaxBoxes}}, "the CPU");
}

void vote(const VoteInputs& in, const VoteOptions& options, const VoteOutputs& out) {
  for (int64_t b = 0; b < in.batch; ++b) {
    const int64_t first = b * in.num_boxes;
    const Image image{static_cast<const float*>(in.boxes) + 4 * first, in.scores + first, in.labels + first,
                      out.found_boxes + 4 * first, out.found_scores + first};
    vote_in_image(image, in.num_boxes, options);
  }
}

}  // namespace refinedet::cpu
