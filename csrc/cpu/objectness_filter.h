// Which anchors pass the filter of the refinement stage: objectness(background, object) >= threshold, decided for
// nearly all of them by the difference of the two logits, without an exponential.
#pragma once

#include <cstdint>

namespace refinedet::cpu {

class ObjectnessFilter {
 public:
  explicit ObjectnessFilter(float threshold);

  // Writes the numbers in [0, count) of those that pass, ascending, and returns how many they are. `logits` has
  // (background, object) of each.
  int64_t operator()(const float* logits, int64_t count, uint32_t* passed) const;

 private:
  float threshold_;
  float passes_to_, fails_from_;  // differences background - object; between them objectness() decides
};

}  // namespace refinedet::cpu
