// SPDX-License-Identifier: Apache-2.0
#include "memory/age_penalties.h"

#include <algorithm>
#include <cmath>

namespace mneme {
namespace {

// Longer tables (64 MB) serve one call and are not kept.
constexpr int64_t kGreatestKept = int64_t{1} << 24;

}  // namespace

AgePenalties::AgePenalties(int64_t least_age, int64_t greatest_age, float beyond)
    : least_(least_age), greatest_(greatest_age), beyond_(beyond) {
  values_.resize(static_cast<size_t>(greatest_age - least_age + 1));
  for (size_t i = 0; i < values_.size(); ++i) values_[i] = Of(greatest_age - static_cast<int64_t>(i), beyond);
}

float AgePenalties::Of(int64_t age, float beyond) {
  const double ratio = static_cast<double>(age) / static_cast<double>(beyond);
  return ratio > 1 ? static_cast<float>(std::log2(ratio)) : 0.0f;
}

std::shared_ptr<const AgePenalties> AgePenaltyCache::Get(int64_t least_age, int64_t greatest_age, float beyond) {
  if (greatest_age - least_age > kGreatestKept / 2) {
    return std::make_shared<AgePenalties>(least_age, greatest_age, beyond);
  }
  {
    MutexLock lock(&mutex_);
    if (last_ != nullptr && last_->Covers(least_age, greatest_age, beyond)) return last_;
  }
  // Room for a memory that grows.
  const int64_t margin = (greatest_age - least_age) / 2 + 1024;
  const int64_t least = std::max(least_age - margin, std::min<int64_t>(least_age, 0));
  auto made = std::make_shared<const AgePenalties>(least, greatest_age + margin, beyond);
  MutexLock lock(&mutex_);
  last_ = made;
  return made;
}

}  // namespace mneme
