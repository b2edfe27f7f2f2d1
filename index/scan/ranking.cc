// SPDX-License-Identifier: Apache-2.0
#include "index/scan/ranking.h"

#include <limits>

namespace mneme {

double Ranking::MinScaledDot(float threshold, float penalty) const {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double decayed = decay != 0 ? static_cast<double>(decay) * penalty : 0.0;
  double least = static_cast<double>(threshold) - addend + decayed;
  // Infinities, and the NaN that they may make, give no bound.
  if (!(std::fabs(least) < kInfinity)) return -kInfinity;
  const double magnitude = std::fabs(threshold) + std::fabs(addend) + std::fabs(decayed);
  least -= 1e-6 * magnitude;
  if (soft_cap > 0) {
    const double cap = soft_cap;
    const double ratio = least / cap - 1e-5 * (1 + magnitude / cap);
    if (ratio >= 1) return kInfinity;
    if (!(ratio > -1)) return -kInfinity;
    least = cap * std::atanh(ratio);
    least -= 1e-5 * std::fabs(least);
  }
  return least;
}

float Ranking::MinDot(float threshold, float penalty) const {
  const double least = MinScaledDot(threshold, penalty) / static_cast<double>(scale);
  // An infinite bound stays infinite; subtracting a share of it would make it NaN.
  return static_cast<float>(std::isinf(least) ? least : least - 1e-6 * std::fabs(least));
}

bool Ranking::RisesWithDot() const {
  return scale > 0 && std::isfinite(scale) && std::isfinite(addend) && decay >= 0 && std::isfinite(decay);
}

}  // namespace mneme
