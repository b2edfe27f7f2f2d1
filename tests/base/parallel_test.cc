// SPDX-License-Identifier: Apache-2.0
#include "base/parallel.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(ParallelTest, RunsEveryTaskOnce) {
  for (const size_t threads : {size_t{1}, size_t{2}, size_t{5}}) {
    const auto pool = MakeThreadPool(threads);
    EXPECT_EQ(pool->Width(), threads);
    for (const size_t n : {size_t{0}, size_t{1}, size_t{3}, size_t{1000}}) {
      std::vector<std::atomic<int>> runs(n);
      pool->ParallelFor(n, [&](size_t i) { ++runs[i]; });
      for (const auto& count : runs) ASSERT_EQ(count, 1);
    }
  }
}

TEST(ParallelTest, SeveralCallersShareAPool) {
  const auto pool = MakeThreadPool(3);
  std::vector<std::thread> callers;
  std::atomic<int64_t> sum{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        int64_t own[16] = {};
        pool->ParallelFor(16, [&](size_t i) { own[i] = static_cast<int64_t>(i); });
        for (const int64_t value : own) sum += value;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 200 * 120);
}

}  // namespace
}  // namespace mneme
