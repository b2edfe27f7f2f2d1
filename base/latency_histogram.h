// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_LATENCY_HISTOGRAM_H_
#define MNEME_BASE_LATENCY_HISTOGRAM_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace mneme {

// How long calls took, in buckets whose bounds double: 1 µs, 2 µs, … 2^24 µs (16.8 s), and all that is longer.
// Thread-safe.
class LatencyHistogram {
 public:
  static constexpr size_t kBounds = 25;

  // In seconds: a call of exactly this long counts in the bucket.
  static double UpperBound(size_t bucket) { return 1e-6 * static_cast<double>(uint64_t{1} << bucket); }

  void Record(std::chrono::nanoseconds duration);

  struct Totals {
    std::array<uint64_t, kBounds + 1> buckets{};  // calls in each bucket alone; the last: longer than all bounds
    double seconds = 0;                           // sum of all calls
  };
  // Calls that end meanwhile may be in one number and not yet in the other.
  Totals Read() const;

 private:
  std::array<std::atomic<uint64_t>, kBounds + 1> buckets_{};
  std::atomic<uint64_t> nanoseconds_{0};
};

// Records the time from its construction to its end. `histogram` null: measures nothing.
class LatencyTimer {
 public:
  explicit LatencyTimer(LatencyHistogram* histogram) : histogram_(histogram) {
    if (histogram_ != nullptr) start_ = std::chrono::steady_clock::now();
  }
  ~LatencyTimer() {
    if (histogram_ != nullptr) histogram_->Record(std::chrono::steady_clock::now() - start_);
  }
  LatencyTimer(const LatencyTimer&) = delete;
  LatencyTimer& operator=(const LatencyTimer&) = delete;

 private:
  LatencyHistogram* const histogram_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace mneme

#endif  // MNEME_BASE_LATENCY_HISTOGRAM_H_
