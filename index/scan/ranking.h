// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_RANKING_H_
#define MNEME_INDEX_SCAN_RANKING_H_

#include <cmath>
#include <cstdint>

namespace mneme {

// How one query ranks a row:
//
//   logit = cap(scale * dot) + addend - decay * row_penalty[row]
//   cap(s) = soft_cap * tanh(s / soft_cap), or s if soft_cap is 0
//
// row_penalty has one entry for each row of the KeyRows that are scanned (indexed by row, not by token). It may be null
// if decay is 0.
struct Ranking {
  float scale = 1;
  float soft_cap = 0;
  float addend = 0;
  float decay = 0;
  const float* row_penalty = nullptr;

  float Logit(float dot, int64_t row) const {
    const float scaled = dot * scale;
    return AddRowTerms(soft_cap > 0 ? soft_cap * std::tanh(scaled / soft_cap) : scaled, row);
  }

  // Returns: an upper bound of Logit(d, row) over all d <= dot. Requires: scale > 0.
  float MaxLogit(float dot, int64_t row) const {
    // Rounding preserves the order of the numbers that it rounds; only tanh may be off by some units in the last place.
    const float scaled = dot * scale;
    return AddRowTerms(soft_cap > 0 ? soft_cap * std::tanh(scaled / soft_cap) + 1e-6f * soft_cap : scaled, row);
  }

  // Returns: a lower bound of scale * dot for all rows with a penalty of at least `penalty` whose Logit reaches
  // `threshold`. It allows for every rounding in Logit. -infinity if there is no bound, +infinity if no row can reach
  // the threshold.
  double MinScaledDot(float threshold, float penalty) const;

  // Returns: a lower bound of the dot product for the same rows. Requires: scale > 0.
  float MinDot(float threshold, float penalty) const;

  // Whether Logit rises with the dot product and is finite for finite dot products. If not, a bound of the dot product
  // is no bound of the logit.
  bool RisesWithDot() const;

 private:
  // Adds the terms that do not depend on the dot product.
  float AddRowTerms(float logit, int64_t row) const {
    logit = logit + addend;
    return decay != 0 ? logit - decay * row_penalty[row] : logit;
  }
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_RANKING_H_
