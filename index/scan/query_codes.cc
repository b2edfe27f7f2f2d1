// SPDX-License-Identifier: Apache-2.0
#include "index/scan/query_codes.h"

#include <algorithm>
#include <cmath>

namespace mneme::codes {
namespace {

// The least step for which the values fit int8 and the kernels' sums do not overflow.
float MinStep(const float* query, int64_t dim, const Kernels& kernels) {
  float greatest = 0;
  for (int64_t d = 0; d < dim; ++d) greatest = std::max(greatest, std::fabs(query[d]));
  const float step = greatest / kMaxQueryValue;
  if (kernels.max_int16_sum == 0) return step;
  // The greatest sum of the positive elements, or of the negative ones, that share a 16-bit sum.
  float greatest_sum = 0;
  for (int64_t d = 0; d < dim; d += kTileDims) {
    float positive[2] = {}, negative[2] = {};
    for (int64_t i = d; i < std::min(dim, d + kTileDims); ++i) {
      const int64_t sum_of = i % 4 / 2;
      (query[i] > 0 ? positive[sum_of] : negative[sum_of]) += std::fabs(query[i]);
    }
    greatest_sum = std::max({greatest_sum, positive[0], positive[1], negative[0], negative[1]});
  }
  // Rounding adds at most 1/2 for each of the eight values that share a sum.
  return std::max(step, greatest_sum / static_cast<float>(kernels.max_int16_sum - kTileDims / 4));
}

}  // namespace

QueryCode EncodeQuery(const float* query, int64_t dim, const Kernels& kernels, int8_t* values) {
  QueryCode code{.step = MinStep(query, dim, kernels), .sum = 0, .error_squared = 0};
  float inverse = 1.0f / code.step;
  if (!(code.step > 0) || !std::isfinite(inverse)) code.step = inverse = 0;
  for (int64_t d = 0; d < dim; ++d) {
    constexpr float kRound = 0x1.8p23f;  // adding and subtracting it rounds to an integer
    constexpr auto kMax = static_cast<float>(kMaxQueryValue);
    float whole = (query[d] * inverse + kRound) - kRound;
    const double rest = query[d] - static_cast<double>(whole) * code.step;
    code.error_squared += rest * rest;
    // If the query is not finite, neither is its error, and then any values are right.
    whole = whole < kMax ? whole : kMax;
    whole = whole > -kMax ? whole : -kMax;
    values[d] = static_cast<int8_t>(whole);
    code.sum += values[d];
  }
  std::fill(values + dim, values + (dim + kTileDims - 1) / kTileDims * kTileDims, int8_t{0});
  return code;
}

}  // namespace mneme::codes
