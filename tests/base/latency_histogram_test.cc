// SPDX-License-Identifier: Apache-2.0
#include "base/latency_histogram.h"

#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace mneme {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

TEST(LatencyHistogramTest, ACallCountsInTheFirstBucketWhoseBoundItDoesNotExceed) {
  struct Case {
    nanoseconds duration;
    size_t bucket;
  };
  const Case cases[] = {
      {nanoseconds(-5), 0},        {nanoseconds(0), 0},  {nanoseconds(1), 0},         {microseconds(1), 0},
      {nanoseconds(1001), 1},      {microseconds(2), 1}, {nanoseconds(2001), 2},      {microseconds(3), 2},
      {microseconds(4), 2},        {microseconds(5), 3}, {microseconds(1 << 24), 24}, {microseconds((1 << 24) + 1), 25},
      {std::chrono::hours(1), 25},
  };
  for (const Case& c : cases) {
    LatencyHistogram histogram;
    histogram.Record(c.duration);
    const LatencyHistogram::Totals totals = histogram.Read();
    for (size_t i = 0; i < totals.buckets.size(); ++i) {
      EXPECT_EQ(totals.buckets[i], i == c.bucket ? 1u : 0u) << c.duration.count() << " ns, bucket " << i;
    }
    if (c.bucket < LatencyHistogram::kBounds) {
      EXPECT_LE(1e-9 * static_cast<double>(c.duration.count()), (1 + 1e-12) * LatencyHistogram::UpperBound(c.bucket));
    }
  }
}

TEST(LatencyHistogramTest, SumsWhatSeveralThreadsRecord) {
  LatencyHistogram histogram;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int call = 0; call < 1000; ++call) histogram.Record(microseconds(3));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(histogram.Read().buckets[2], 4000u);
  EXPECT_DOUBLE_EQ(histogram.Read().seconds, 0.012);
}

TEST(LatencyTimerTest, MeasuresItsOwnLife) {
  LatencyHistogram histogram;
  {
    const LatencyTimer timer(&histogram), none(nullptr);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_GE(histogram.Read().seconds, 0.005);
  EXPECT_LT(histogram.Read().seconds, 60);
}

}  // namespace
}  // namespace mneme
