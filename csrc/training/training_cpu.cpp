#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "training/training.h"

namespace refinedet::cpu {
namespace {

constexpr int64_t kGrain = 32768;  // numbers per task: some 10 us
constexpr int64_t kBlock = 64;     // rows whose factor gradients are added up in float32
constexpr int64_t kLanes = 16;     // independent sums of a row: what vector instructions need, whatever their width

int64_t halved(int64_t side) { return (side + 1) / 2; }

int64_t grain(int64_t numbers) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, numbers)); }

// The four pixels of the window at (row, column) of the pooled map; `outside` where the map has ended.
template <class T>
struct Window {
  T* pixels[4];

  Window(T* image, MapSize size, int64_t row, int64_t column, T* outside) {
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t y = 2 * row + i / 2, x = 2 * column + i % 2;
      const bool inside = y < size.rows && x < size.columns;
      pixels[i] = inside ? image + (y * size.columns + x) * size.channels : outside;
    }
  }
};

REFINEDET_VECTOR_CLONES
void pool_window(const float* first, const float* second, const float* third, const float* fourth, int64_t channels,
                 float* pooled, uint8_t* choice) {
  for (int64_t c = 0; c < channels; ++c) {
    float best = first[c];
    int32_t chosen = 0;
    const auto offer = [&](float value, int32_t pixel) {
      const bool taken = (value > best) | (value != value);
      chosen = taken ? pixel : chosen;
      best = taken ? value : best;
    };
    offer(second[c], 1);
    offer(third[c], 2);
    offer(fourth[c], 3);
    const bool none = best <= 0;
    pooled[c] = none ? 0.0f : best;
    choice[c] = static_cast<uint8_t>(none ? kNoPixel : chosen);
  }
}

REFINEDET_VECTOR_CLONES
void spread_window(const float* __restrict gradient, const uint8_t* __restrict choice, int64_t channels,
                   float* __restrict first, float* __restrict second, float* __restrict third,
                   float* __restrict fourth) {
  for (int64_t c = 0; c < channels; ++c) {
    const float value = gradient[c];
    const int32_t chosen = choice[c];
    first[c] = chosen == 0 ? value : 0.0f;
    second[c] = chosen == 1 ? value : 0.0f;
    third[c] = chosen == 2 ? value : 0.0f;
    fourth[c] = chosen == 3 ? value : 0.0f;
  }
}

// Calls function(image, row) for every row of the pooled maps.
template <class Function>
void for_pooled_rows(MapSize size, Function function) {
  const int64_t rows = halved(size.rows);
  parallel_for(0, size.batch * rows, grain(2 * size.columns * size.channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(i / rows, i % rows);
  });
}

float sum(const float (&lanes)[kLanes]) {
  float total = 0;
  for (const float lane : lanes) total += lane;
  return total;
}

REFINEDET_VECTOR_CLONES
float normalize_row(const float* row, const float* factors, int64_t channels, float epsilon, float* result) {
  float lanes[kLanes] = {};
  const int64_t whole = channels - channels % kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) lanes[i] += row[c + i] * row[c + i];
  }
  for (int64_t c = whole; c < channels; ++c) lanes[c - whole] += row[c] * row[c];
  const float inverse = 1 / std::sqrt(sum(lanes) + epsilon);
  for (int64_t c = 0; c < channels; ++c) result[c] = row[c] * inverse * factors[c];
  return inverse;
}

// With u = row * inverse and v = gradient * factors: inverse * (v - u * (v . u)), and gradient * u to the factors.
REFINEDET_VECTOR_CLONES
void backward_row(const float* gradient, const float* row, const float* factors, float inverse, int64_t channels,
                  float* row_gradient, float* factor_gradient) {
  float lanes[kLanes] = {};
  const int64_t whole = channels - channels % kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) lanes[i] += gradient[c + i] * factors[c + i] * (row[c + i] * inverse);
  }
  for (int64_t c = whole; c < channels; ++c) lanes[c - whole] += gradient[c] * factors[c] * (row[c] * inverse);
  const float product = sum(lanes);
  for (int64_t c = 0; c < channels; ++c) {
    const float unit = row[c] * inverse;
    row_gradient[c] = inverse * (gradient[c] * factors[c] - unit * product);
    factor_gradient[c] += gradient[c] * unit;
  }
}

REFINEDET_VECTOR_CLONES
void step(const float* __restrict gradient, int64_t count, SgdOptions options, float* __restrict velocity,
          float* __restrict weights) {
  for (int64_t i = 0; i < count; ++i) {
    velocity[i] = options.momentum * velocity[i] + options.decay * weights[i] + options.rate * gradient[i];
    weights[i] -= velocity[i];
  }
}

}  // namespace

void relu_pool(const float* map, MapSize size, float* pooled, uint8_t* choice) {
  const std::vector<float> outside(size.channels, -std::numeric_limits<float>::infinity());
  const int64_t columns = halved(size.columns);
  for_pooled_rows(size, [&](int64_t image, int64_t row) {
    const float* const pixels = map + image * size.rows * size.columns * size.channels;
    int64_t place = (image * halved(size.rows) + row) * columns * size.channels;
    for (int64_t column = 0; column < columns; ++column, place += size.channels) {
      const Window<const float> window(pixels, size, row, column, outside.data());
      const auto& [first, second, third, fourth] = window.pixels;
      pool_window(first, second, third, fourth, size.channels, pooled + place, choice + place);
    }
  });
}

void relu_pool_backward(const float* gradient, const uint8_t* choice, MapSize size, float* result) {
  const int64_t columns = halved(size.columns);
  for_pooled_rows(size, [&](int64_t image, int64_t row) {
    thread_local std::vector<float> outside;
    outside.resize(size.channels);
    float* const pixels = result + image * size.rows * size.columns * size.channels;
    int64_t place = (image * halved(size.rows) + row) * columns * size.channels;
    for (int64_t column = 0; column < columns; ++column, place += size.channels) {
      const Window<float> window(pixels, size, row, column, outside.data());
      const auto& [first, second, third, fourth] = window.pixels;
      spread_window(gradient + place, choice + place, size.channels, first, second, third, fourth);
    }
  });
}

void l2norm(Rows rows, const float* factors, float epsilon, float* result, float* inverse) {
  parallel_for(0, rows.count, grain(rows.channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t place = i * rows.channels;
      inverse[i] = normalize_row(rows.values + place, factors, rows.channels, epsilon, result + place);
    }
  });
}

void l2norm_backward(const float* gradient, Rows rows, const float* factors, const float* inverse, float* row_gradient,
                     float* factor_gradient) {
  const int64_t blocks = (rows.count + kBlock - 1) / kBlock;
  std::vector<float> sums(blocks * rows.channels);
  parallel_for(0, blocks, grain(kBlock * rows.channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kBlock; i < std::min(end * kBlock, rows.count); ++i) {
      const int64_t place = i * rows.channels;
      backward_row(gradient + place, rows.values + place, factors, inverse[i], rows.channels, row_gradient + place,
                   sums.data() + i / kBlock * rows.channels);
    }
  });
  for (int64_t c = 0; c < rows.channels; ++c) {
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += sums[block * rows.channels + c];
    factor_gradient[c] = static_cast<float>(total);
  }
}

void caffe_sgd(const float* gradient, int64_t count, SgdOptions options, float* velocity, float* weights) {
  parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    step(gradient + begin, end - begin, options, velocity + begin, weights + begin);
  });
}

}  // namespace refinedet::cpu
