#include "ops/nms/nms.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "box_math.h"
#include "cpu/kept_boxes.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/sort_keys.h"

namespace refinedet::cpu {
namespace {

constexpr int64_t kFewBoxes = 64;     // of a class: they need no grid
constexpr int64_t kTaskBoxes = 4096;  // so many pay for another thread
constexpr int64_t kMostCells = 16;    // a box that touches more of them belongs to none

// The corners of a box, x1, y1, x2, y2, or something of each of them.
using Floats [[gnu::vector_size(16)]] = float;
using Ints [[gnu::vector_size(16)]] = int32_t;

Corners load(const float* box) { return {box[0], box[1], box[2], box[3]}; }

struct NmsScratch {
  Scratch<uint64_t> keys;
  SortScratch sort;
  Scratch<uint32_t> numbers;  // of the classes, in the order of the keys
  Scratch<uint32_t> members;  // of the classes, one after the other: numbers of boxes
  Scratch<uint8_t> kept;      // by box

  int64_t bytes() const { return keys.bytes() + sort.bytes() + numbers.bytes() + members.bytes() + kept.bytes(); }
};

// Whether all boxes take part.
REFINEDET_VECTOR_CLONES
bool all_numbers(const float* boxes, const float* scores, int64_t count) {
  int32_t trouble = 0;
  for (int64_t i = 0; i < 4 * count; ++i) trouble |= !finite(boxes[i]);
  for (int64_t i = 0; i < count; ++i) trouble |= scores[i] != scores[i];
  return trouble == 0;
}

REFINEDET_VECTOR_CLONES
void make_keys(const float* scores, int64_t count, uint64_t* keys) {
  for (int64_t i = 0; i < count; ++i) keys[i] = descending_key(scores[i], static_cast<uint32_t>(i));
}

// The keys of all boxes that take part, descending_key(score, index). Returns their number.
int64_t list_keys(const float* boxes, const float* scores, int64_t num_boxes, uint64_t* keys) {
  make_keys(scores, num_boxes, keys);
  if (all_numbers(boxes, scores, num_boxes)) return num_boxes;
  int64_t count = 0;
  for (int64_t i = 0; i < num_boxes; ++i) {
    keys[count] = keys[i];
    count += scores[i] == scores[i] && finite(load(boxes + 4 * i));
  }
  return count;
}

// --- Classes ----------------------------------------------------------------------------------------------------------

// Numbers for labels, from 0.
class LabelNumbers {
 public:
  LabelNumbers(const int64_t* labels, int64_t count) : lowest_(labels[0]) {
    int64_t highest = labels[0];
    for (int64_t i = 1; i < count; ++i) {
      lowest_ = std::min(lowest_, labels[i]);
      highest = std::max(highest, labels[i]);
    }
    const uint64_t range = static_cast<uint64_t>(highest) - static_cast<uint64_t>(lowest_);
    if (range < static_cast<uint64_t>(2 * count)) {
      size_ = static_cast<int64_t>(range) + 1;
      return;
    }
    distinct_.assign(labels, labels + count);
    std::sort(distinct_.begin(), distinct_.end());
    distinct_.erase(std::unique(distinct_.begin(), distinct_.end()), distinct_.end());
    size_ = static_cast<int64_t>(distinct_.size());
  }

  int64_t size() const { return size_; }

  uint32_t operator()(int64_t label) const {
    if (distinct_.empty()) return static_cast<uint32_t>(label - lowest_);
    const auto found = std::lower_bound(distinct_.begin(), distinct_.end(), label);
    return static_cast<uint32_t>(found - distinct_.begin());
  }

 private:
  int64_t lowest_, size_;
  std::vector<int64_t> distinct_;  // where they are far from each other
};

// Lists the boxes of each class in their order, and returns where the classes end. There is room in `numbers`.
std::vector<int64_t> group_by_label(const int64_t* labels, const LabelNumbers& number, const uint64_t* keys,
                                    int64_t count, uint32_t* numbers, uint32_t* members) {
  std::vector<int64_t> ends(number.size());
  for (int64_t i = 0; i < count; ++i) {
    numbers[i] = number(labels[key_index(keys[i])]);
    ++ends[numbers[i]];
  }
  std::exclusive_scan(ends.begin(), ends.end(), ends.begin(), int64_t{0});
  for (int64_t i = 0; i < count; ++i) members[ends[numbers[i]]++] = key_index(keys[i]);
  return ends;
}

// --- Suppression ------------------------------------------------------------------------------------------------------

// The columns and rows that a box touches, inclusive.
struct Cells {
  int32_t left, top, right, bottom;

  int32_t count() const { return (right - left + 1) * (bottom - top + 1); }
};

// Cells along one axis.
struct Axis {
  float origin = 0, scale = 0;
  int64_t cells = 1;
};

// A grid over the boxes of a class, in cells about as large as they are. Boxes that overlap share a cell.
class Grid {
 public:
  template <class BoxAt>
  Grid(int64_t count, const BoxAt& box_at) {
    Corners bounds = load(box_at(0));
    double width = 0, height = 0;
    for (int64_t i = 0; i < kFewBoxes;
         ++i) {  // a sample: what lies beyond the bounds goes into the cells at the border
      const Corners box = load(box_at(i * (count / kFewBoxes)));
      bounds = {std::min(bounds.x1, box.x1), std::min(bounds.y1, box.y1), std::max(bounds.x2, box.x2),
                std::max(bounds.y2, box.y2)};
      width += positive(box.x2 - box.x1);
      height += positive(box.y2 - box.y1);
    }
    const auto most = static_cast<int64_t>(std::sqrt(static_cast<double>(count) / 8));
    const Axis x = axis(bounds.x1, bounds.x2, width / kFewBoxes, most);
    const Axis y = axis(bounds.y1, bounds.y2, height / kFewBoxes, most);
    columns_ = x.cells;
    rows_ = y.cells;
    const auto last = [](const Axis& axis) { return static_cast<float>(axis.cells - 1); };
    origin_ = Floats{x.origin, y.origin, x.origin, y.origin};
    scale_ = Floats{x.scale, y.scale, x.scale, y.scale};
    last_ = Floats{last(x), last(y), last(x), last(y)};
  }

  int64_t size() const { return columns_ * rows_; }

  // Monotone in each coordinate, whatever is rounded.
  Cells cells(Floats box) const {
    const Floats place = (box - origin_) * scale_;
    const Floats inside = place < last_ ? place : last_;
    return std::bit_cast<Cells>(__builtin_convertvector(inside > 0.0f ? inside : Floats{}, Ints));
  }

  // Whether `visit(number)` is true for one of the cells.
  template <class Visit>
  bool any(const Cells& cells, const Visit& visit) const {
    for (int64_t row = cells.top; row <= cells.bottom; ++row) {
      for (int64_t column = cells.left; column <= cells.right; ++column) {
        if (visit(row * columns_ + column)) return true;
      }
    }
    return false;
  }

 private:
  static Axis axis(float low, float high, double size, int64_t most) {
    const double extent = static_cast<double>(high) - low;
    if (!(size > 0) || !(extent > size)) return {};
    const int64_t cells = std::clamp(static_cast<int64_t>(std::min(extent / size, 1e6)), int64_t{1}, most);
    const auto scale = static_cast<float>(static_cast<double>(cells) / extent);
    return std::isnormal(scale) ? Axis{low, scale, cells} : Axis{};
  }

  int64_t columns_ = 1, rows_ = 1;
  Floats origin_{}, scale_{}, last_{};
};

// The part of a box that a box which suppresses it has to touch: that one covers more than the share `iou_threshold` of
// its width and of its height. Rounding is far below the margin, but where an area is nearly 0.
Floats core(Floats box, float box_area, float iou_threshold) {
  if (!(box_area > 1e-30f)) return box;
  const Floats opposite{box[2], box[3], box[0], box[1]};
  return box + 0.99f * std::min(iou_threshold, 0.5f) * (opposite - box);
}

// Greedy suppression, best first. `keep(i, is_kept)` hears of each box. `suppressed(box, area)` asks those that
// `add(box, area)` got.
template <class BoxAt, class Keep, class Suppressed, class Add>
void suppress(int64_t count, const BoxAt& box_at, const Keep& keep, const Suppressed& suppressed, const Add& add) {
  constexpr int64_t kAhead = 8;  // boxes lie anywhere in memory
  for (int64_t i = 0; i < count; ++i) {
    __builtin_prefetch(box_at(std::min(i + kAhead, count - 1)));
    const Corners box = load(box_at(i));
    const float box_area = area(box);
    const bool overlaps_some = box_area > 0;
    const bool goes = overlaps_some && suppressed(box, box_area);
    keep(i, !goes);
    if (overlaps_some && !goes) add(box, box_area);
  }
}

// The same for the boxes of a class.
template <class BoxAt, class Keep>
void suppress_class(int64_t count, float iou_threshold, const BoxAt& box_at, const Keep& keep) {
  const ThreadScratch<KeptBoxes> kept;
  if (count <= kFewBoxes) {
    kept->reset(1);
    return suppress(
        count, box_at, keep,
        [&](const Corners& box, float box_area) { return kept->suppresses(0, box, box_area, iou_threshold); },
        [&](const Corners& box, float box_area) { kept->add(0, box, box_area); });
  }
  const Grid grid(count, box_at);
  const int64_t elsewhere = grid.size();  // the list of boxes that touch many cells
  kept->reset(grid.size() + 1);
  const auto suppressed = [&](const Corners& box, float box_area) {
    const auto suppresses = [&](int64_t list) { return kept->suppresses(list, box, box_area, iou_threshold); };
    const Floats middle = core(std::bit_cast<Floats>(box), box_area, iou_threshold);
    return suppresses(elsewhere) || grid.any(grid.cells(middle), suppresses);
  };
  const auto add = [&](const Corners& box, float box_area) {
    const Cells cells = grid.cells(std::bit_cast<Floats>(box));
    if (cells.count() > kMostCells) return kept->add(elsewhere, box, box_area);
    grid.any(cells, [&](int64_t list) { return kept->add(list, box, box_area), false; });
  };
  suppress(count, box_at, keep, suppressed, add);
}

}  // namespace

std::string nms_limits(const NmsInputs& in, const NmsOptions&) {
  return exceeded({{"the number of boxes", in.num_boxes, NmsLimits::kMaxBoxes}}, "the CPU");
}

void nms(const NmsInputs& in, const NmsOptions& options, const NmsOutputs& out) {
  const auto* const boxes = static_cast<const float*>(in.boxes);
  const ThreadScratch<NmsScratch> scratch;
  uint64_t* const keys = scratch->keys.reserve(in.num_boxes);
  const int64_t count = list_keys(boxes, in.scores, in.num_boxes, keys);
  sort_keys(keys, count, scratch->sort);
  uint8_t* const kept = scratch->kept.reserve(in.num_boxes);
  // Of boxes of one class, best first: box_number(i).
  const auto suppress_boxes = [&](int64_t number, const auto& box_number) {
    suppress_class(
        number, options.iou_threshold, [&](int64_t i) { return boxes + 4 * int64_t{box_number(i)}; },
        [&](int64_t i, bool is_kept) { kept[box_number(i)] = is_kept; });
  };
  if (in.labels == nullptr || count == 0) {
    suppress_boxes(count, [&](int64_t i) { return key_index(keys[i]); });
  } else {
    uint32_t* const members = scratch->members.reserve(count);
    const std::vector<int64_t> ends = group_by_label(in.labels, LabelNumbers(in.labels, in.num_boxes), keys, count,
                                                     scratch->numbers.reserve(count), members);
    const auto num_classes = static_cast<int64_t>(ends.size());
    const int64_t grain = count < 2 * kTaskBoxes ? num_classes : std::max<int64_t>(num_classes * kTaskBoxes / count, 1);
    parallel_for(0, num_classes, grain, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t begin = c == 0 ? 0 : ends[c - 1];
        suppress_boxes(ends[c] - begin, [&](int64_t i) { return members[begin + i]; });
      }
    });
  }
  int64_t listed = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t box = key_index(keys[i]);
    out.kept[listed] = box;
    listed += kept[box];
  }
  *out.count = listed;
}

}  // namespace refinedet::cpu
