// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/rank_key.h"

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace mneme::cuda {
namespace {

TEST(RankKeyTest, OrdersAsLogitsDoAndTiesByTheLowerIndex) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float denormal = std::numeric_limits<float>::denorm_min();
  const std::vector<float> ascending = {-infinity, -3.4e38f, -2.0f, -1.0f,   -1e-30f, -denormal, 0.0f,
                                        denormal,  1e-30f,   1.0f,  1.0001f, 2.0f,    3.4e38f,   infinity};
  for (size_t i = 0; i < ascending.size(); ++i) {
    for (const uint32_t index : {0u, 1u, 77u, 0xFFFFFFFEu}) {
      const uint64_t key = RankKey(ascending[i], index);
      EXPECT_GT(key, kNoRow);
      EXPECT_EQ(LogitOf(key), ascending[i]);
      EXPECT_EQ(IndexOf(key), index);
      for (size_t j = 0; j < i; ++j) EXPECT_GT(key, RankKey(ascending[j], 0)) << ascending[i] << " " << ascending[j];
    }
    EXPECT_GT(RankKey(ascending[i], 3), RankKey(ascending[i], 4));
  }
}

TEST(RankKeyTest, TheTwoZerosTie) {
  EXPECT_EQ(RankKey(-0.0f, 5), RankKey(0.0f, 5));
}

TEST(RankKeyTest, RandomPairs) {
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const float a = FloatOf(static_cast<uint32_t>(random())), b = FloatOf(static_cast<uint32_t>(random()));
    if (a != a || b != b) continue;
    EXPECT_EQ(RankKey(a, 1) > RankKey(b, 1), a > b) << a << " " << b;
  }
}

}  // namespace
}  // namespace mneme::cuda
