// Calls every operator of the CPU on inputs that are the same everywhere, for valgrind to count instructions:
// instructions.py. Without torch, so in one thread. It knows of an operator no more than its contract, <op>.h.
//
// Inputs are integers, and floats that IEEE arithmetic makes of integers: no function of a library.

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpu/parallel.h"
#include "ops/detect/detect.h"
#include "ops/match/match.h"
#include "ops/mine/mine.h"
#include "ops/nms/nms.h"
#include "ops/refine/refine.h"
#include "ops/soft_nms/soft_nms.h"
#include "ops/vote/vote.h"

// Without torch there is one thread.
namespace refinedet::cpu {

int64_t num_threads() { return 1; }

void run_ranges(int64_t begin, int64_t end, int64_t, RangeFunction function, void* context) {
  if (begin < end) function(begin, end, context);
}

}  // namespace refinedet::cpu

// valgrind counts the instructions from entering this function to leaving it.
extern "C" [[gnu::noinline]] void measured(const std::function<void()>& call) {
  call();
  __asm__ volatile("" ::: "memory");  // after the call, which must not become a jump
}

namespace {

using namespace refinedet;
using Floats = std::vector<float>;
using Integers = std::vector<int64_t>;

constexpr Variances kVariances{0.1f, 0.1f, 0.2f, 0.2f};

// A case is counted in its second call: what an operator keeps between calls is there then.
void count(const char* op, const char* name, const std::function<void()>& call) {
  call();
  measured(call);
  std::printf("%s\t%s\n", op, name);
}

// splitmix64
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }

  int64_t below(int64_t limit) { return static_cast<int64_t>((bits() >> 32) * static_cast<uint64_t>(limit) >> 32); }

  // In [0, 1), a multiple of 2^-24.
  float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-24f; }

  bool chance(float probability) { return uniform() < probability; }

  // Close enough to normal, mean 0 and deviation 1.
  float normal() { return (uniform() + uniform() + uniform() - 1.5f) * 2.0f; }

 private:
  uint64_t state_;
};

Floats normals(int64_t count, uint64_t seed) {
  Random random(seed);
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = random.normal();
  return values;
}

// --- The network ------------------------------------------------------------------------------------------------------

// Anchors of each level, strides 8, 16, 32 and 64.
std::vector<int64_t> level_sizes(int64_t side) {
  std::vector<int64_t> sizes;
  for (int64_t stride = 8; stride <= 64; stride *= 2) sizes.push_back(3 * (side / stride) * (side / stride));
  return sizes;
}

// Those of spec section 6, sides rounded.
Floats anchors_of(int64_t side) {
  constexpr float kSides[3][2] = {{1.0f, 1.0f}, {1.4142135f, 0.70710677f}, {0.70710677f, 1.4142135f}};
  Floats anchors;
  for (int64_t stride = 8; stride <= 64; stride *= 2) {
    const int64_t cells = side / stride;
    const float size = 4.0f * static_cast<float>(stride) / static_cast<float>(side);
    for (int64_t cell = 0; cell < cells * cells; ++cell) {
      const float x = static_cast<float>(2 * (cell % cells) + 1) / static_cast<float>(2 * cells);
      const float y = static_cast<float>(2 * (cell / cells) + 1) / static_cast<float>(2 * cells);
      for (const auto& [w, h] : kSides) anchors.insert(anchors.end(), {x, y, size * w, size * h});
    }
  }
  return anchors;
}

// What the network puts out of an image, and what detect makes of it.
struct Detection {
  std::vector<int64_t> levels;
  Floats anchors, arm_loc, arm_conf, odm_loc, odm_conf;
  int64_t num_anchors, num_classes;

  // `survives` says whether the objectness filter keeps an anchor; `spread` scales the random part of the logits.
  Detection(std::vector<int64_t> sizes, Floats grid, int64_t classes, float spread,
            const std::function<bool(const float*, Random&)>& survives)
      : levels(std::move(sizes)), anchors(std::move(grid)), num_classes(classes) {
    num_anchors = static_cast<int64_t>(anchors.size()) / 4;
    arm_loc = normals(4 * num_anchors, 1);
    odm_loc = normals(4 * num_anchors, 2);
    odm_conf = normals(num_classes * num_anchors, 3);
    Random random(4);
    for (int64_t i = 0; i < num_anchors; ++i) {
      const bool object = survives(&anchors[4 * i], random);
      arm_conf.insert(arm_conf.end(), {object ? 0.0f : 10.0f + random.normal(), object ? random.normal() : 0.0f});
      float* const logits = &odm_conf[num_classes * i];
      for (int64_t c = 0; c < num_classes; ++c) logits[c] *= spread;
      if (num_classes > 1) logits[1 + random.below(num_classes - 1)] += 8.0f;
    }
  }

  void count(const char* name) const {
    constexpr int64_t kTopK = 1000, kKeepTopK = 500;
    DetectInputs in{};
    in.type = InputType::kFloat32;
    in.num_levels = static_cast<int>(levels.size());
    int64_t first = 0;
    for (int i = 0; i < in.num_levels; ++i) {
      DetectLevel& level = in.levels[i];
      level.arm_loc = &arm_loc[4 * first];
      level.arm_conf = &arm_conf[2 * first];
      level.odm_loc = &odm_loc[4 * first];
      level.odm_conf = &odm_conf[num_classes * first];
      level.num_anchors = levels[i];
      first += levels[i];
    }
    in.anchors = anchors.data();
    in.batch = 1;
    in.num_anchors = num_anchors;
    in.num_classes = num_classes;
    DetectOptions options{};
    options.objectness_threshold = 0.01f;
    options.score_threshold = 0.01f;
    options.iou_threshold = 0.45f;
    options.top_k = kTopK;
    options.keep_top_k = kKeepTopK;
    options.variances = kVariances;
    Floats boxes(4 * kKeepTopK), scores(kKeepTopK);
    Integers labels(kKeepTopK), indices(kKeepTopK), counts(1);
    DetectOutputs out{};
    out.boxes = boxes.data();
    out.scores = scores.data();
    out.labels = labels.data();
    out.indices = indices.data();
    out.counts = counts.data();
    ::count("detect", name, [&] { cpu::detect(in, options, out); });
  }
};

void count_detect() {
  const auto few = [](const float*, Random& random) { return random.chance(0.02f); };
  const auto all = [](const float*, Random&) { return true; };
  // Objects at the centers of a grid of 3 by 3: whole clusters of anchors survive.
  const auto near_objects = [](const float* anchor, Random&) {
    const auto near = [](float x) {
      const float place = x * 3.0f - static_cast<float>(static_cast<int>(x * 3.0f)) - 0.5f;
      return place * place < 0.02f;
    };
    return near(anchor[0]) && near(anchor[1]);
  };
  const Floats of_320 = anchors_of(320), of_512 = anchors_of(512);
  Detection(level_sizes(320), of_320, 21, 1.0f, few).count("typical VOC 320");
  Detection(level_sizes(320), of_320, 81, 1.0f, few).count("typical COCO 320");
  Detection(level_sizes(512), of_512, 21, 1.0f, few).count("typical VOC 512");
  Detection(level_sizes(320), of_320, 21, 1.5f, near_objects).count("clusters VOC 320");
  Detection(level_sizes(320), of_320, 21, 1.5f, all).count("dense VOC 320");
  Detection({12}, Floats(of_320.begin(), of_320.begin() + 48), 21, 1.0f, all).count("12 anchors");
}

// --- Boxes ------------------------------------------------------------------------------------------------------------

struct Boxes {
  Floats corners, scores;
  Integers labels;
};

// Boxes anywhere, of one class: suppression keeps most of them.
Boxes scattered(int64_t count) {
  Random random(5);
  Boxes boxes;
  for (int64_t i = 0; i < count; ++i) {
    const float x = random.uniform(), y = random.uniform();
    const float w = random.uniform() * 0.1f + 0.01f, h = random.uniform() * 0.1f + 0.01f;
    boxes.corners.insert(boxes.corners.end(), {x - w, y - h, x + w, y + h});
    boxes.scores.push_back(random.uniform());
    boxes.labels.push_back(1);
  }
  return boxes;
}

// Boxes around 40 objects, of 20 classes.
Boxes crowd(int64_t count) {
  Random random(6);
  Floats objects(160);
  for (float& value : objects) value = random.uniform();
  Boxes boxes;
  for (int64_t i = 0; i < count; ++i) {
    const float* const object = &objects[4 * random.below(40)];
    const float x = object[0] + random.normal() * 0.03f, y = object[1] + random.normal() * 0.03f;
    const float w = object[2] * 0.15f + 0.02f, h = object[3] * 0.15f + 0.02f;
    boxes.corners.insert(boxes.corners.end(), {x - w, y - h, x + w, y + h});
    boxes.scores.push_back(random.uniform());
    boxes.labels.push_back(1 + random.below(20));
  }
  return boxes;
}

void count_nms(const char* name, const Boxes& boxes, bool batched) {
  const auto size = static_cast<int64_t>(boxes.scores.size());
  NmsInputs in{};
  in.type = InputType::kFloat32;
  in.boxes = boxes.corners.data();
  in.scores = boxes.scores.data();
  in.labels = batched ? boxes.labels.data() : nullptr;
  in.num_boxes = size;
  NmsOptions options{};
  options.iou_threshold = 0.45f;
  Integers kept(size), number(1);
  NmsOutputs out{};
  out.kept = kept.data();
  out.count = number.data();
  count("nms", name, [&] { cpu::nms(in, options, out); });
}

void count_soft_nms(const char* name, const Boxes& boxes, bool gaussian) {
  const auto size = static_cast<int64_t>(boxes.scores.size());
  SoftNmsInputs in{};
  in.type = InputType::kFloat32;
  in.boxes = boxes.corners.data();
  in.scores = boxes.scores.data();
  in.labels = boxes.labels.data();
  in.batch = 1;
  in.num_boxes = size;
  SoftNmsOptions options{};
  options.gaussian = gaussian;
  options.iou_threshold = 0.3f;
  options.sigma = 0.5f;
  options.score_threshold = 0.001f;
  Floats decayed(size);
  SoftNmsOutputs out{};
  out.decayed = decayed.data();
  count("soft_nms", name, [&] { cpu::soft_nms(in, options, out); });
}

void count_vote(const char* name, const Boxes& boxes, bool soft) {
  const auto size = static_cast<int64_t>(boxes.scores.size());
  VoteInputs in{};
  in.type = InputType::kFloat32;
  in.boxes = boxes.corners.data();
  in.scores = boxes.scores.data();
  in.labels = boxes.labels.data();
  in.batch = 1;
  in.num_boxes = size;
  VoteOptions options{};
  options.iou_threshold = 0.45f;
  options.soft = soft;
  options.score_threshold = 0.01f;
  Floats found_boxes(4 * size), found_scores(size);
  VoteOutputs out{};
  out.found_boxes = found_boxes.data();
  out.found_scores = found_scores.data();
  count("vote", name, [&] { cpu::vote(in, options, out); });
}

// --- Training ---------------------------------------------------------------------------------------------------------

void count_match(const char* name, int64_t side, int64_t batch, int64_t objects) {
  const Floats anchors = anchors_of(side);
  const int64_t num_anchors = static_cast<int64_t>(anchors.size()) / 4;
  Random random(7);
  Floats truths;
  Integers labels, offsets{0};
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < objects; ++i) {
      const float x = random.uniform(), y = random.uniform();
      const float w = random.uniform() * 0.15f + 0.02f, h = random.uniform() * 0.15f + 0.02f;
      truths.insert(truths.end(), {x - w, y - h, x + w, y + h});
      labels.push_back(1 + random.below(20));
    }
    offsets.push_back(static_cast<int64_t>(labels.size()));
  }
  MatchInputs in{};
  in.anchors = anchors.data();
  in.gt_boxes = truths.data();
  in.gt_labels = labels.data();
  in.gt_offsets = offsets.data();
  in.batch = batch;
  in.num_anchors = num_anchors;
  in.num_truths = batch * objects;
  in.shared_anchors = true;
  MatchOptions options{};
  options.iou_threshold = 0.5f;
  options.variances = kVariances;
  Integers matched(batch * num_anchors), indices(batch * num_anchors);
  Floats targets(4 * batch * num_anchors), ious(batch * num_anchors);
  MatchOutputs out{};
  out.labels = matched.data();
  out.targets = targets.data();
  out.indices = indices.data();
  out.ious = ious.data();
  count("match", name, [&] { cpu::match(in, options, out); });
}

// Without classes losses are given, otherwise logits; `filtered`: with an objectness that drops most anchors.
void count_mine(const char* name, int64_t num_anchors, int64_t batch, int64_t classes, bool filtered) {
  const int64_t rows = batch * num_anchors;
  const Floats losses = normals(rows * (classes == 0 ? 1 : classes), 8);
  Random random(9);
  Integers labels;
  Floats ious, objectness;
  for (int64_t i = 0; i < rows; ++i) {
    const bool positive = random.chance(0.005f);
    labels.push_back(positive ? 1 + random.below(20) : 0);
    ious.push_back(positive ? 0.75f : random.uniform() * 0.5f);
    objectness.push_back(random.chance(0.1f) ? random.uniform() : 0.0f);
  }
  MineInputs in{};
  in.type = InputType::kFloat32;
  in.losses = losses.data();
  in.labels = labels.data();
  in.ious = ious.data();
  in.objectness = filtered ? objectness.data() : nullptr;
  in.batch = batch;
  in.num_anchors = num_anchors;
  in.num_classes = classes;
  MineOptions options{};
  options.negative_iou = 0.5f;
  options.negative_ratio = 3.0;
  options.objectness_threshold = 0.01f;
  const auto mask = std::make_unique<bool[]>(rows);
  MineOutputs out{};
  out.mask = mask.get();
  count("mine", name, [&] { cpu::mine(in, options, out); });
}

void count_refine(const char* name, int64_t side, int64_t batch, bool shared) {
  Floats anchors = anchors_of(side);
  const int64_t num_anchors = static_cast<int64_t>(anchors.size()) / 4;
  const Floats grid = anchors;
  for (int64_t b = 1; b < batch && !shared; ++b) anchors.insert(anchors.end(), grid.begin(), grid.end());
  const Floats offsets = normals(4 * batch * num_anchors, 10);
  RefineInputs in{};
  in.type = InputType::kFloat32;
  in.anchors = anchors.data();
  in.offsets = offsets.data();
  in.batch = batch;
  in.num_anchors = num_anchors;
  in.shared_anchors = shared;
  RefineOptions options{};
  options.variances = kVariances;
  Floats refined(4 * batch * num_anchors);
  RefineOutputs out{};
  out.refined = refined.data();
  count("refine", name, [&] { cpu::refine(in, options, out); });
}

// --- All of them ------------------------------------------------------------------------------------------------------

struct Operator {
  const char* name;
  void (*count)();
};

const Operator kOperators[] = {
    {"detect", count_detect},
    {"nms",
     [] {
       count_nms("1,000 boxes", scattered(1000), false);
       count_nms("6,375 boxes", scattered(6375), false);
       count_nms("1,000 boxes of 20 classes", crowd(1000), true);
       count_nms("6,375 boxes of 20 classes", crowd(6375), true);
     }},
    {"match",
     [] {
       count_match("VOC 320, batch 8", 320, 8, 8);
       count_match("VOC 512, batch 1", 512, 1, 8);
       count_match("VOC 320, a crowd of 100", 320, 1, 100);
     }},
    {"mine",
     [] {
       count_mine("VOC 320, batch 8", 6375, 8, 21, false);
       count_mine("VOC 320, filtered, batch 8", 6375, 8, 21, true);
       count_mine("VOC 320, losses, batch 8", 6375, 8, 0, false);
     }},
    {"refine",
     [] {
       count_refine("VOC 320, batch 1", 320, 1, true);
       count_refine("VOC 320, anchors of its own, batch 8", 320, 8, false);
     }},
    {"soft_nms",
     [] {
       count_soft_nms("linear, 1,000 boxes of 20 classes", crowd(1000), false);
       count_soft_nms("Gaussian, 1,000 boxes of 20 classes", crowd(1000), true);
       count_soft_nms("linear, 1,000 boxes", scattered(1000), false);
     }},
    {"vote",
     [] {
       count_vote("1,000 boxes of 20 classes", crowd(1000), false);
       count_vote("6,375 boxes of 20 classes", crowd(6375), false);
       count_vote("soft, 1,000 boxes", scattered(1000), true);
     }},
};

}  // namespace

// Counts all operators, or the one that is named.
int main(int argc, char** argv) {
  for (const Operator& op : kOperators) {
    if (argc < 2 || std::string(argv[1]) == op.name) op.count();
  }
}
