// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BENCH_GUARD_ROUNDS_H_
#define MNEME_BENCH_GUARD_ROUNDS_H_

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace mneme {

// How often `work` fits into the time of `yardstick`, both done in turn, the best time of each counting: what disturbs
// a measurement only ever adds to it. Ends as soon as the ratio is `least`, at the earliest after a few rounds, and
// gives up after `limit`: a busy machine costs time, not a failure.
inline void ExpectFasterThan(double least, const std::function<double()>& yardstick, const std::function<void()>& work,
                             std::chrono::duration<double> limit = std::chrono::seconds(4)) {
  using Clock = std::chrono::steady_clock;
  constexpr int kFewRounds = 3;
  const auto start = Clock::now();
  double best_yardstick = std::numeric_limits<double>::infinity(), best_work = best_yardstick, ratio = 0;
  int rounds = 0;
  work();  // pages and caches are warm from then on
  for (; rounds < kFewRounds || (ratio < least && Clock::now() - start < limit); ++rounds) {
    best_yardstick = std::min(best_yardstick, yardstick());
    const auto begun = Clock::now();
    work();
    best_work = std::min(best_work, std::chrono::duration<double>(Clock::now() - begun).count());
    ratio = best_yardstick / best_work;
  }
  ::testing::Test::RecordProperty("ratio", std::to_string(ratio));
  std::printf("    ratio %.3g, at least %.3g; %.4g ms, best of %d\n", ratio, least, best_work * 1e3, rounds);
  EXPECT_GE(ratio, least) << "best of " << rounds << " rounds: yardstick " << best_yardstick * 1e3 << " ms, work "
                          << best_work * 1e3 << " ms";
}

// A yardstick: the time that `work` takes.
inline std::function<double()> TimeOf(std::function<void()> work) {
  return [work = std::move(work)] {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
}

}  // namespace mneme

#endif  // MNEME_BENCH_GUARD_ROUNDS_H_
