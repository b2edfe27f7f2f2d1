// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_CENTROID_MISS_ESTIMATE_H_
#define MNEME_INDEX_CENTROID_MISS_ESTIMATE_H_

#include <algorithm>
#include <cmath>

namespace mneme {

// The attention of rows that nobody has scored, in units of exp(threshold). `rows` rows have logits that are normally
// distributed around threshold - distance * spread, with standard deviation `spread`. Returns the expected sum of
// exp(logit - threshold) over those of them whose logit exceeds the threshold:
//
//   rows * exp(-a^2 / 2) * R(a - s),   R(b) = exp(b^2 / 2) * P(standard normal > b),   a = distance, s = spread
//
// The result is off by less than 0.2 % where a <= 5. Requires: rows > 0, spread > 0.
inline float AttentionAbove(float rows, float distance, float spread) {
  constexpr float kMostExponent = 80;
  const float b = distance - spread;
  const float magnitude = std::fabs(b);
  // Abramowitz and Stegun 26.2.17.
  const float t = 1 / (1 + 0.2316419f * magnitude);
  const float tail =
      t * (0.31938153f + t * (-0.356563782f + t * (1.781477937f + t * (-1.821255978f + t * 1.330274429f))));
  constexpr float kInverseRoot = 0.3989422804f;  // 1 / sqrt(2 pi)
  const float density = std::exp(-std::min(distance * distance / 2, kMostExponent));
  if (b >= 0) return rows * density * kInverseRoot * tail;
  // P(standard normal > b) = 1 - P(standard normal > -b)
  const float all = std::exp(std::min(spread * spread / 2 - distance * spread, kMostExponent));
  return rows * std::max(0.0f, all - density * kInverseRoot * tail);
}

// An upper bound that holds for at least 95 % of the queries, where `estimate` is the estimated share of the k best
// rows' attention that a search missed, and `least_share` the share of the last of the k rows that it found. The miss
// is made of few rows, each of about least_share or more, so it spreads around its mean as such a sum does. The factors
// were measured on recordings (docs/design/centroid.md).
inline float MissBound95(float estimate, float least_share) {
  return std::min(1.0f, 3 * estimate + 6 * std::sqrt(estimate * least_share) + 0.002f);
}

}  // namespace mneme

#endif  // MNEME_INDEX_CENTROID_MISS_ESTIMATE_H_
