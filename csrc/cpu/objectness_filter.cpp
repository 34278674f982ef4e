#include "cpu/objectness_filter.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "box_math.h"
#include "cpu/parallel.h"

namespace refinedet::cpu {
namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kWord = sizeof(uint64_t);

enum Answer : uint8_t { kFails, kPasses, kAsk };

REFINEDET_VECTOR_CLONES
void classify(const float* logits, int64_t count, float passes_to, float fails_from, uint8_t* answers) {
  for (int64_t i = 0; i < count; ++i) {
    const float difference = logits[2 * i] - logits[2 * i + 1];
    answers[i] = difference <= passes_to ? kPasses : difference >= fails_from ? kFails : kAsk;  // kAsk for NaN
  }
}

}  // namespace

// objectness() is 1 / (1 + e^d) with an error below 2^-21 of it, if it is not subnormal.
ObjectnessFilter::ObjectnessFilter(float threshold) : threshold_(threshold) {
  constexpr double kMargin = 1.0 / (1 << 20);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr double kMostNormal = 60;  // above 87.3 objectness() is subnormal, then 0
  const auto difference = [](double p) { return std::log(1 / p - 1); };
  passes_to_ = -kInfinity;
  fails_from_ = kInfinity;
  if (threshold <= 0) {  // whatever is a number
    passes_to_ = kInfinity;
  } else if (threshold > 1) {
    passes_to_ = std::numeric_limits<float>::quiet_NaN();
    fails_from_ = -kInfinity;
  } else {
    const double above = threshold * (1 + kMargin), below = threshold * (1 - kMargin);
    // Rounded to float, a bound moves by less than the margin: its own error is at most 2^-24 of 104.
    if (above < 1) passes_to_ = static_cast<float>(std::min(difference(above), kMostNormal));
    if (threshold > 1e-30f) fails_from_ = static_cast<float>(difference(below));
  }
}

int64_t ObjectnessFilter::operator()(const float* logits, int64_t count, uint32_t* passed) const {
  int64_t found = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = std::min(kBlock, count - begin);
    const float* const block = logits + 2 * begin;
    uint8_t answers[kBlock];
    classify(block, size, passes_to_, fails_from_, answers);
    std::fill(answers + size, answers + (size + kWord - 1) / kWord * kWord, kFails);
    for (int64_t first = 0; first < size; first += kWord) {
      uint64_t word;
      std::memcpy(&word, answers + first, kWord);
      for (; word != 0; word &= ~(uint64_t{0xff} << (std::countr_zero(word) & ~7))) {
        const int64_t i = first + std::countr_zero(word) / 8;
        if (answers[i] == kPasses || objectness(block[2 * i], block[2 * i + 1]) >= threshold_) {
          passed[found++] = static_cast<uint32_t>(begin + i);
        }
      }
    }
  }
  return found;
}

}  // namespace refinedet::cpu
