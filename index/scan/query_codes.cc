// SPDX-License-Identifier: Apache-2.0
#include "index/scan/query_codes.h"

#include <algorithm>
#include <cmath>

namespace mneme::codes {
namespace {

// The least step with which the values stay within what the kernels' sums hold.
float LeastStep(const float* query, int64_t dim, const Kernels& kernels) {
  float greatest = 0;
  for (int64_t d = 0; d < dim; ++d) greatest = std::max(greatest, std::fabs(query[d]));
  const float step = greatest / kGreatestValue;
  if (kernels.greatest_narrow_sum == 0) return step;
  float sum = 0;
  for (int64_t d = 0; d < dim; d += kTileDims) {
    float up[2] = {}, down[2] = {};
    for (int64_t i = d; i < std::min(dim, d + kTileDims); ++i) {
      const int64_t sum_of = i % 4 / 2;
      (query[i] > 0 ? up[sum_of] : down[sum_of]) += std::fabs(query[i]);
    }
    sum = std::max({sum, up[0], up[1], down[0], down[1]});
  }
  // Rounding adds at most a half for each of the eight that share a sum.
  return std::max(step, sum / static_cast<float>(kernels.greatest_narrow_sum - kTileDims / 4));
}

}  // namespace

QueryCode EncodeQuery(const float* query, int64_t dim, const Kernels& kernels, int8_t* values) {
  QueryCode code{LeastStep(query, dim, kernels), 0, 0};
  float inverse = 1.0f / code.step;
  if (!(code.step > 0) || !std::isfinite(inverse)) code.step = inverse = 0;
  for (int64_t d = 0; d < dim; ++d) {
    constexpr float kShift = 0x1.8p23f;  // adding it rounds to a whole number
    constexpr auto kGreatest = static_cast<float>(kGreatestValue);
    float whole = (query[d] * inverse + kShift) - kShift;
    const double rest = query[d] - static_cast<double>(whole) * code.step;
    code.error2 += rest * rest;
    // The error of a query that is not finite is not either, so its values prove nothing whatever they are.
    whole = whole < kGreatest ? whole : kGreatest;
    whole = whole > -kGreatest ? whole : -kGreatest;
    values[d] = static_cast<int8_t>(whole);
    code.sum += values[d];
  }
  std::fill(values + dim, values + (dim + kTileDims - 1) / kTileDims * kTileDims, int8_t{0});
  return code;
}

}  // namespace mneme::codes
