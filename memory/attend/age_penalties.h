// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_AGE_PENALTIES_H_
#define MNEME_MEMORY_ATTEND_AGE_PENALTIES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "base/mutex.h"

namespace mneme {

// max(0, log2(age / beyond)) for consecutive ages: what decay takes off a logit, a table for all rows, heads and
// layers. Immutable.
class AgePenalties {
 public:
  AgePenalties(int64_t least_age, int64_t greatest_age, float beyond);

  static float Of(int64_t age, float beyond);

  bool Covers(int64_t least_age, int64_t greatest_age, float beyond) const {
    return beyond_ == beyond && least_ <= least_age && greatest_age <= greatest_;
  }

  // Entry [row] is the penalty, for a query at `position`, of row `row` of an owner whose row 0 is token `first_token`.
  const float* ForRows(int64_t position, int64_t first_token) const {
    return values_.data() + (greatest_ - position + first_token);
  }

 private:
  const int64_t least_;
  const int64_t greatest_;
  const float beyond_;
  std::vector<float> values_;
};

// Keeps the last table, since every step of every layer wants nearly the same one. Thread-safe.
class AgePenaltyCache {
 public:
  std::shared_ptr<const AgePenalties> Get(int64_t least_age, int64_t greatest_age, float beyond);

 private:
  Mutex mutex_;
  std::shared_ptr<const AgePenalties> last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_AGE_PENALTIES_H_
