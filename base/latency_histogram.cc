// SPDX-License-Identifier: Apache-2.0
#include "base/latency_histogram.h"

#include <algorithm>
#include <bit>

namespace mneme {

void LatencyHistogram::Record(std::chrono::nanoseconds duration) {
  const auto nanoseconds = static_cast<uint64_t>(std::max<int64_t>(duration.count(), 0));
  const uint64_t microseconds = (nanoseconds + 999) / 1000;  // rounded up, so that a bound is in its own bucket
  const auto bucket = microseconds <= 1 ? size_t{0} : static_cast<size_t>(std::bit_width(microseconds - 1));
  buckets_[std::min(bucket, kBounds)].fetch_add(1, std::memory_order_relaxed);
  nanoseconds_.fetch_add(nanoseconds, std::memory_order_relaxed);
}

LatencyHistogram::Totals LatencyHistogram::Read() const {
  Totals totals;
  for (size_t i = 0; i < buckets_.size(); ++i) totals.buckets[i] = buckets_[i].load(std::memory_order_relaxed);
  totals.seconds = 1e-9 * static_cast<double>(nanoseconds_.load(std::memory_order_relaxed));
  return totals;
}

}  // namespace mneme
