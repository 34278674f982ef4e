#include <algorithm>

#include "cpu/parallel.h"
#include "network/pooling.h"

namespace refinedet::cpu {
namespace {

template <int kSide>
[[gnu::always_inline]] inline void pool_pixel(const float* const* rows, const int64_t* columns, int64_t channels,
                                              float* y) {
  for (int64_t c = 0; c < channels; ++c) {
    float largest = rows[0][columns[0] + c];
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        const float value = rows[i][columns[j] + c];
        largest = !(value <= largest) ? value : largest;
      }
    }
    y[c] = largest;
  }
}

// A window that ends outside takes the last row or column again, which changes no maximum.
template <int kSide>
[[gnu::always_inline]] inline void pool_rows(const Pooling& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* rows[kSide];
    for (int i = 0; i < kSide; ++i) {
      const int64_t at = std::min(row % p.out_height * p.stride + i, p.height - 1);
      rows[i] = p.x + (row / p.out_height * p.height + at) * p.width * p.channels;
    }
    for (int64_t column = 0; column < p.out_width; ++column) {
      int64_t columns[kSide];
      for (int j = 0; j < kSide; ++j) columns[j] = std::min(column * p.stride + j, p.width - 1) * p.channels;
      pool_pixel<kSide>(rows, columns, p.channels, p.y + (row * p.out_width + column) * p.channels);
    }
  }
}

REFINEDET_VECTOR_CLONES
void pool_rows_of_2(const Pooling& p, int64_t begin, int64_t end) { pool_rows<2>(p, begin, end); }

REFINEDET_VECTOR_CLONES
void pool_rows_of_3(const Pooling& p, int64_t begin, int64_t end) { pool_rows<3>(p, begin, end); }

}  // namespace

void max_pool(const Pooling& pooling, int64_t side) {
  parallel_for(0, pooling.batch * pooling.out_height, 4,
               [&](int64_t begin, int64_t end) { (side == 2 ? pool_rows_of_2 : pool_rows_of_3)(pooling, begin, end); });
}

}  // namespace refinedet::cpu
