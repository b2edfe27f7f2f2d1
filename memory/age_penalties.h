// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_AGE_PENALTIES_H_
#define MNEME_MEMORY_AGE_PENALTIES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "base/mutex.h"

namespace mneme {

// A table of max(0, log2(age / beyond)) over consecutive ages, in tokens. Decay multiplies an entry and subtracts it
// from a logit. All rows, heads and layers of a call share one table. Immutable.
class AgePenalties {
 public:
  AgePenalties(int64_t least_age, int64_t greatest_age, float beyond);

  static float Of(int64_t age, float beyond);

  bool Covers(int64_t least_age, int64_t greatest_age, float beyond) const {
    return beyond_ == beyond && least_ <= least_age && greatest_age <= greatest_;
  }

  // Returns: an array whose entry [row] is the penalty of row `row` for a query at `position`. Row 0 is token
  // `first_token`.
  const float* ForRows(int64_t position, int64_t first_token) const {
    return values_.data() + (greatest_ - position + first_token);
  }

 private:
  const int64_t least_;
  const int64_t greatest_;
  const float beyond_;
  std::vector<float> values_;
};

// Keeps the last table, because every step of every layer needs nearly the same one. Thread-safe.
class AgePenaltyCache {
 public:
  std::shared_ptr<const AgePenalties> Get(int64_t least_age, int64_t greatest_age, float beyond);

 private:
  Mutex mutex_;
  std::shared_ptr<const AgePenalties> last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_MEMORY_AGE_PENALTIES_H_
