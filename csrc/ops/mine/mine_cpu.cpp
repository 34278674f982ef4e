#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "box_math.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "ops/mine/mine.h"

// An anchor is ranked by a key of 32 bits, larger = harder: of losses by their order, of logits by an estimate of 1 /
// p0 that takes a few instructions for each class. Only where estimates are too alike to decide, at the last place that
// is selected, is p0 computed as ops/mine/mine.h has it. So the selection is exact, and few softmaxes are.
namespace refinedet::cpu {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kChunk = 2048;    // anchors of one work item
constexpr int64_t kTask = 1 << 16;  // logits of a work item that is worth a thread, some 20 us
constexpr int64_t kImages = 4;      // the same of images whose anchors are ranked

constexpr uint32_t kNoKey = 0;  // of an anchor that is no candidate: its loss is NaN
constexpr int kBinShift = 21;   // a bin of keys: sign, exponent and two more bits
constexpr int kBins = 1 << (32 - kBinShift);

// Anchors of one image.
struct Chunk {
  const float* losses;      // [count], or logits [count, num_classes]
  int64_t num_classes;      // 0 = losses
  const float* losses_end;  // of all images: nothing behind it may be read
  const int64_t* labels;
  const float* ious;
  const float* objectness;  // never null: see chunk_of
  float objectness_threshold;
  float negative_iou;
  int64_t count;
};

struct Counts {
  int64_t candidates, positives;
};

// --- Who may be selected ---------------------------------------------------------------------------------------------

REFINEDET_VECTOR_CLONES
int64_t count_positives(const int64_t* labels, int64_t count) {
  int64_t positives = 0;
  for (int64_t i = 0; i < count; ++i) positives += labels[i] > 0;
  return positives;
}

// Which of kLanes anchors are eligible, as bits.
[[gnu::always_inline]] inline uint32_t eligible(const Chunk& chunk, const int64_t* labels, const float* ious,
                                                const float* objectness) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < kLanes; ++k) {
    const bool hit = (labels[k] == 0) & (ious[k] < chunk.negative_iou) & (objectness[k] >= chunk.objectness_threshold);
    bits |= hit ? 1u << k : 0u;
  }
  return bits;
}

// Writes the places of the eligible anchors of a chunk, ascending. Returns their number.
REFINEDET_VECTOR_CLONES
int64_t list_eligible(const Chunk& chunk, int32_t* places) {
  int64_t size = 0;
  for (int64_t first = 0; first < chunk.count; first += kLanes) {
    const int64_t rest = chunk.count - first;
    uint32_t bits;
    if (rest >= kLanes) {
      bits = eligible(chunk, chunk.labels + first, chunk.ious + first, chunk.objectness + first);
    } else {
      int64_t labels[kLanes];
      float ious[kLanes], objectness[kLanes];
      std::fill(std::copy_n(chunk.labels + first, rest, labels), labels + kLanes, -1);
      std::fill(std::copy_n(chunk.ious + first, rest, ious), ious + kLanes, 0.0f);
      std::fill(std::copy_n(chunk.objectness + first, rest, objectness), objectness + kLanes, 0.0f);
      bits = eligible(chunk, labels, ious, objectness);
    }
    for (; bits != 0; bits &= bits - 1) places[size++] = static_cast<int32_t>(first + std::countr_zero(bits));
  }
  return size;
}

// --- Keys ------------------------------------------------------------------------------------------------------------

// Ascending as the losses are; those that are equal have one key.
uint32_t key_of_loss(float loss) {
  if (std::isnan(loss)) return kNoKey;
  const uint32_t bits = float_bits(loss + 0.0f);  // -0 becomes +0, its equal
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The key of an estimate is the bits of the float. Keys of anchors further apart than this are in the order of p0: then
// one estimate is at least 1.07 times the other, and both are too large by at most 6.2 %, see add_terms.
constexpr uint32_t kSlack = 1174405;  // 0.14 * 2^23

// Of so many classes. With fewer the exponentials cost no more than the sums, with more their rounding shows.
constexpr int64_t kMinEstimated = 8, kMaxEstimated = 4096;

bool estimated(int64_t num_classes) { return num_classes >= kMinEstimated && num_classes <= kMaxEstimated; }

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using Words = uint32_t __attribute__((vector_size(4 * kLanes)));

// The sum of e^(logit - background) of one anchor, in lanes.
struct Sum {
  Floats lanes = {};
  Words failed = {};  // the sign bit of a lane: a logit that is too far from the background, infinite or NaN
};

// e^t as the float whose bits are 2^23 (t / ln 2 + 127): exact at powers of two, between them a straight line, which is
// above by at most 6.15 %. Rounding adds less than 0.01 %. Lanes outside of `used` add nothing.
[[gnu::always_inline]] inline void add_terms(const float* logits, float background, const Ints& used, Sum& sum) {
  constexpr uint32_t least = 0x14800000u, most = 0x6a800000u;  // 2^-86 to 2^86: sums and p0 stay normal numbers
  Floats x;
  std::memcpy(&x, logits, sizeof(x));
  const Ints bits = __builtin_convertvector((x - background) * 12102203.0f + 1065353216.0f, Ints);
  const Words word = (Words)bits;
  sum.failed |= ((word - least) | (most - word)) & (Words)used;
  sum.lanes += (Floats)(bits & used);
}

// NaN if any lane failed.
[[gnu::always_inline]] inline float total(const Sum& sum) {
  using Half = float __attribute__((vector_size(2 * kLanes)));
  using Quarter = float __attribute__((vector_size(kLanes)));
  const Ints bits = (Ints)sum.lanes | ((Ints)sum.failed >> 31);  // all bits set is a NaN
  const char* const bytes = reinterpret_cast<const char*>(&bits);
  Half half[2];
  std::memcpy(half, bytes, sizeof(half));
  half[0] += half[1];
  Quarter quarter[2];
  std::memcpy(quarter, &half[0], sizeof(quarter));
  quarter[0] += quarter[1];
  return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

// Eligible anchors are few and apart, so that the processor does not guess which row comes next.
[[gnu::always_inline]] inline void prefetch_row(const float* row, int64_t num_classes) {
  constexpr int64_t kLine = 16;  // floats
  for (int64_t c = 0; c < num_classes; c += kLine) __builtin_prefetch(row + c);
  __builtin_prefetch(row + num_classes - 1);
}

// Estimates 1 / p0 of anchors of a chunk; NaN where it fails.
REFINEDET_VECTOR_CLONES
void estimate(const Chunk& chunk, const int32_t* places, int64_t size, float* estimates) {
  const int64_t whole = chunk.num_classes / kLanes * kLanes, rest = chunk.num_classes - whole;
  constexpr int64_t kAhead = 8;
  const Ints all = ~Ints{};
  Ints some;
  for (int64_t k = 0; k < kLanes; ++k) some[k] = k < rest ? -1 : 0;
  for (int64_t i = 0; i < size; ++i) {
    const float* const row = chunk.losses + places[i] * chunk.num_classes;
    prefetch_row(chunk.losses + places[std::min(i + kAhead, size - 1)] * chunk.num_classes, chunk.num_classes);
    Sum sum;
    for (int64_t c = 0; c < whole; c += kLanes) add_terms(row + c, row[0], all, sum);
    if (rest > 0) {
      const float* last = row + whole;
      float copy[kLanes] = {};
      if (chunk.losses_end - last < kLanes) last = static_cast<float*>(std::memcpy(copy, last, rest * sizeof(float)));
      add_terms(last, row[0], some, sum);
    }
    estimates[i] = total(sum);
  }
}

// Background probabilities as the contract has them: softmax of several anchors side by side, each summed in class
// order.
class Softmax {
 public:
  explicit Softmax(int64_t num_classes) : num_classes_(num_classes), logits_(num_classes * kLanes) {}

  // Calls write(i, max(p0, FLT_MIN), or NaN) for i in [0, count); row(i) gives the logits.
  template <class Row, class Write>
  void each(int64_t count, const Row& row, const Write& write) {
    float p0[kLanes];
    for (int64_t first = 0; first < count; first += kLanes) {
      const int64_t size = std::min(kLanes, count - first);
      for (int64_t k = 0; k < size; ++k) load(k, row(first + k));
      compute(logits_.data(), num_classes_, p0);
      for (int64_t k = 0; k < size; ++k) write(first + k, p0[k] < FLT_MIN ? FLT_MIN : p0[k]);
    }
  }

 private:
  void load(int64_t lane, const float* logits) {
    for (int64_t c = 0; c < num_classes_; ++c) logits_[c * kLanes + lane] = logits[c];
  }

  REFINEDET_VECTOR_CLONES
  static void compute(const float* logits, int64_t num_classes, float* p0) {
    float top[kLanes], sum[kLanes] = {};
    std::copy_n(logits, kLanes, top);
    for (int64_t c = 1; c < num_classes; ++c)
      for (int64_t k = 0; k < kLanes; ++k) top[k] = logits[c * kLanes + k] > top[k] ? logits[c * kLanes + k] : top[k];
    for (int64_t c = 0; c < num_classes; ++c)
      for (int64_t k = 0; k < kLanes; ++k) sum[k] += portable_exp(logits[c * kLanes + k] - top[k]);
    for (int64_t k = 0; k < kLanes; ++k) p0[k] = portable_exp(logits[k] - top[k]) / sum[k];
  }

  int64_t num_classes_;
  std::vector<float> logits_;  // [num_classes, kLanes]
};

// Keys of the anchors of a chunk. What it holds is used again for the next chunk.
class Ranker {
 public:
  explicit Ranker(int64_t num_classes) : softmax_(num_classes) {}

  // Writes the places of the candidates, ascending, and their keys.
  Counts rank(const Chunk& chunk, int32_t* places, uint32_t* keys) {
    const int64_t size = list_eligible(chunk, places);
    if (chunk.num_classes == 0) {
      for (int64_t i = 0; i < size; ++i) keys[i] = key_of_loss(chunk.losses[places[i]]);
    } else {
      rank_logits(chunk, places, size, keys);
    }
    int64_t candidates = 0;
    for (int64_t i = 0; i < size; ++i) {
      places[candidates] = places[i];
      keys[candidates] = keys[i];
      candidates += keys[i] != kNoKey;
    }
    return {candidates, count_positives(chunk.labels, chunk.count)};
  }

 private:
  void rank_logits(const Chunk& chunk, const int32_t* places, int64_t size, uint32_t* keys) {
    if (estimated(chunk.num_classes)) {
      estimate(chunk, places, size, estimates_);
    } else {
      std::fill_n(estimates_, size, std::numeric_limits<float>::quiet_NaN());
    }
    failed_.clear();
    for (int64_t i = 0; i < size; ++i) {
      keys[i] = float_bits(estimates_[i]);
      if (std::isnan(estimates_[i])) failed_.push_back(static_cast<int32_t>(i));
    }
    const auto row = [&](int64_t i) { return chunk.losses + places[failed_[i]] * chunk.num_classes; };
    softmax_.each(failed_.size(), row,
                  [&](int64_t i, float p0) { keys[failed_[i]] = std::isnan(p0) ? kNoKey : float_bits(1.0f / p0); });
  }

  Softmax softmax_;
  float estimates_[kChunk];
  std::vector<int32_t> failed_;  // where the estimate is of no use
};

// --- Selection -------------------------------------------------------------------------------------------------------

struct Candidate {
  uint32_t key;
  float hardness;  // exact, of logits; computed where keys are alike
  int64_t anchor;
};

bool larger_key(const Candidate& a, const Candidate& b) { return a.key > b.key; }

bool harder(const Candidate& a, const Candidate& b) {
  return a.hardness != b.hardness ? a.hardness > b.hardness : a.anchor < b.anchor;
}

// The candidates of one image, chunk by chunk.
struct Candidates {
  const Counts* counts;  // of the chunks
  const int32_t* places;
  const uint32_t* keys;
  int64_t num_anchors;
  int64_t total, positives;

  // Calls visit(key, anchor), in the order of the anchors.
  template <class Visit>
  void each(const Visit& visit) const {
    for (int64_t first = 0; first < num_anchors; first += kChunk)
      for (int64_t i = first; i < first + counts[first / kChunk].candidates; ++i) visit(keys[i], first + places[i]);
  }
};

// Marks the hardest candidates of an image. What it holds is used again for the next image.
class Selector {
 public:
  explicit Selector(int64_t num_classes) : num_classes_(num_classes), softmax_(num_classes), bins_(kBins) {}

  // `losses` are those of the image; `wanted` is at least 1.
  void select(const Candidates& candidates, const float* losses, int64_t wanted, bool* mask) {
    if (candidates.total <= wanted) {
      candidates.each([&](uint32_t, int64_t anchor) { mask[anchor] = true; });
      return;
    }
    const uint32_t slack = num_classes_ > 0 ? kSlack : 0;
    collect(candidates, wanted, slack);
    std::nth_element(near_.begin(), near_.begin() + wanted - 1, near_.end(), larger_key);
    const uint32_t last = near_[wanted - 1].key;  // of fewer than `wanted` candidates the key is larger
    alike_.clear();
    for (const Candidate& candidate : near_) {
      if (candidate.key > last && candidate.key - last > slack) {
        mask[candidate.anchor] = true;
        --wanted;
      } else if (candidate.key >= last || last - candidate.key <= slack) {
        alike_.push_back(candidate);
      }
    }
    if (num_classes_ > 0) {
      const auto row = [&](int64_t i) { return losses + alike_[i].anchor * num_classes_; };
      softmax_.each(alike_.size(), row, [&](int64_t i, float p0) { alike_[i].hardness = -p0; });
    }
    std::nth_element(alike_.begin(), alike_.begin() + wanted, alike_.end(), harder);
    for (int64_t i = 0; i < wanted; ++i) mask[alike_[i].anchor] = true;
  }

 private:
  // Fills near_ with the candidates of the `wanted` largest keys and with all that are within `slack` of the last.
  void collect(const Candidates& candidates, int64_t wanted, uint32_t slack) {
    std::fill(bins_.begin(), bins_.end(), 0);
    candidates.each([&](uint32_t key, int64_t) { ++bins_[key >> kBinShift]; });
    uint32_t bin = kBins - 1;
    for (int64_t above = bins_[bin]; above < wanted; above += bins_[bin]) --bin;
    const uint32_t edge = bin << kBinShift, least = edge > slack ? edge - slack : 0;
    near_.clear();
    candidates.each([&](uint32_t key, int64_t anchor) {
      if (key >= least) near_.push_back({key, 0.0f, anchor});
    });
  }

  int64_t num_classes_;
  Softmax softmax_;
  std::vector<int64_t> bins_;
  std::vector<Candidate> near_, alike_;
};

// How many negatives an image wants, before looking at how many are eligible.
int64_t num_wanted(int64_t positives, double negative_ratio, int64_t num_anchors) {
  if (positives == 0) return 0;  // the ratio may be infinity
  const double wanted = std::floor(negative_ratio * static_cast<double>(positives));
  return static_cast<int64_t>(std::min(wanted, static_cast<double>(num_anchors)));
}

// Both steps for a batch, with the memory that is between them.
class Miner {
 public:
  Miner(const MineInputs& in, const MineOptions& options, const MineOutputs& out)
      : in_(in),
        options_(options),
        out_(out),
        chunks_((in.num_anchors + kChunk - 1) / kChunk),
        counts_(in.batch * chunks_),
        places_(new int32_t[in.batch * in.num_anchors]),
        keys_(new uint32_t[in.batch * in.num_anchors]) {}

  void run() {
    const int64_t grain = std::max<int64_t>(1, kTask / (kChunk * (in_.num_classes + 4)));
    parallel_for(0, in_.batch * chunks_, grain, [&](int64_t begin, int64_t end) {
      Ranker ranker(in_.num_classes);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / chunks_, first = item % chunks_ * kChunk, at = b * in_.num_anchors + first;
        counts_[item] = wants_any(b) ? ranker.rank(chunk(b, first), &places_[at], &keys_[at]) : Counts{};
      }
    });
    parallel_for(0, in_.batch, kImages, [&](int64_t begin, int64_t end) {
      Selector selector(in_.num_classes);
      for (int64_t b = begin; b < end; ++b) select(b, selector);
    });
  }

 private:
  bool wants_any(int64_t b) const {
    const int64_t* const labels = in_.labels + b * in_.num_anchors;
    return std::any_of(labels, labels + in_.num_anchors, [](int64_t label) { return label > 0; });
  }

  Chunk chunk(int64_t b, int64_t first) const {
    const int64_t at = b * in_.num_anchors + first, width = std::max<int64_t>(in_.num_classes, 1);
    const float* const losses = static_cast<const float*>(in_.losses);
    Chunk chunk = {.losses = losses + at * width,
                   .num_classes = in_.num_classes,
                   .losses_end = losses + in_.batch * in_.num_anchors * width,
                   .labels = in_.labels + at,
                   .ious = in_.ious + at,
                   .objectness = in_.ious + at,  // without objectness any number that is at least -inf
                   .objectness_threshold = -std::numeric_limits<float>::infinity(),
                   .negative_iou = options_.negative_iou,
                   .count = std::min(kChunk, in_.num_anchors - first)};
    if (in_.objectness != nullptr) {
      chunk.objectness = in_.objectness + at;
      chunk.objectness_threshold = options_.objectness_threshold;
    }
    return chunk;
  }

  void select(int64_t b, Selector& selector) const {
    const int64_t at = b * in_.num_anchors;
    Candidates candidates = {counts_.data() + b * chunks_, &places_[at], &keys_[at], in_.num_anchors, 0, 0};
    for (int64_t i = 0; i < chunks_; ++i) {
      candidates.total += candidates.counts[i].candidates;
      candidates.positives += candidates.counts[i].positives;
    }
    std::fill_n(out_.mask + at, in_.num_anchors, false);
    const int64_t wanted = num_wanted(candidates.positives, options_.negative_ratio, in_.num_anchors);
    const float* const losses = static_cast<const float*>(in_.losses) + at * in_.num_classes;
    if (wanted > 0) selector.select(candidates, losses, wanted, out_.mask + at);
  }

  const MineInputs& in_;
  const MineOptions& options_;
  const MineOutputs& out_;
  const int64_t chunks_;               // of an image
  std::vector<Counts> counts_;         // of every chunk
  std::unique_ptr<int32_t[]> places_;  // of its candidates, from its first anchor on
  std::unique_ptr<uint32_t[]> keys_;
};

}  // namespace

std::string mine_limits(const MineInputs&, const MineOptions&) { return {}; }

void mine(const MineInputs& in, const MineOptions& options, const MineOutputs& out) {
  keep_memory(in.batch * in.num_anchors * int64_t{sizeof(int32_t) + sizeof(uint32_t) + sizeof(bool)});
  Miner(in, options, out).run();
}

}  // namespace refinedet::cpu
