// What training does between convolutions, on the CPU: layers of the network, forwards and backwards, and the
// optimiser. Nothing but memory limits them, so each goes through its arrays once. Maps are channels-last: float32
// [batch, rows, columns, channels] without gaps.
#pragma once

#include <cstdint>

namespace refinedet::cpu {

struct MapSize {
  int64_t batch, rows, columns, channels;
};

constexpr uint8_t kNoPixel = 4;

// ReLU, then the largest of every window of 2 x 2 pixels, which an odd side cuts off. `pooled` and `choice` are [batch,
// ceil(rows / 2), ceil(columns / 2), channels]. `choice` is the pixel that the gradient goes back to, 2 * row + column
// in the window: the first of the largest, or kNoPixel where that is not above 0. Of several NaN the last one is
// chosen.
void relu_pool(const float* map, MapSize size, float* pooled, uint8_t* choice);

// Gradient of a map of `size`, from that of `pooled`.
void relu_pool_backward(const float* gradient, const uint8_t* choice, MapSize size, float* result);

struct Rows {
  const float* values;  // [count, channels]
  int64_t count, channels;
};

// Every row times `inverse`, [count]: 1 / sqrt(its sum of squares + epsilon), and times a factor of each channel.
void l2norm(Rows rows, const float* factors, float epsilon, float* result, float* inverse);

// Gradients of the rows and of the factors, from that of the result. Sums do not depend on the number of threads.
void l2norm_backward(const float* gradient, Rows rows, const float* factors, const float* inverse, float* row_gradient,
                     float* factor_gradient);

struct SgdOptions {
  float momentum, decay, rate;  // `decay` already times the rate
};

// Caffe's step: velocity = momentum * velocity + decay * weight + rate * gradient, then weight -= velocity.
void caffe_sgd(const float* gradient, int64_t count, SgdOptions options, float* velocity, float* weights);

}  // namespace refinedet::cpu
