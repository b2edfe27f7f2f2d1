// SPDX-License-Identifier: Apache-2.0
#include "index/top_k.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace mneme {
namespace {

std::vector<Scored> BestBySorting(std::vector<Scored> rows, int64_t k) {
  std::sort(rows.begin(), rows.end(), Better);
  if (static_cast<int64_t>(rows.size()) > k) rows.resize(static_cast<size_t>(k));
  return rows;
}

void ExpectSame(absl::Span<const Scored> actual, const std::vector<Scored>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(actual[i].score, expected[i].score) << i;
    EXPECT_EQ(actual[i].index, expected[i].index) << i;
  }
}

TEST(TopKTest, EqualsSortingWithManyTies) {
  constexpr int kSeed = 5;
  std::mt19937 random(kSeed);
  for (int trial = 0; trial < 300; ++trial) {
    const int n = static_cast<int>(random() % 2000);
    const int64_t k = static_cast<int64_t>(random() % 100);
    const int levels = 1 + static_cast<int>(random() % 40);
    std::vector<Scored> rows;
    for (int i = 0; i < n; ++i) rows.push_back({static_cast<float>(random() % static_cast<unsigned>(levels)), i});
    std::shuffle(rows.begin(), rows.end(), random);
    TopK one(k), first(k), second(k);
    for (size_t i = 0; i < rows.size(); ++i) {
      const float threshold = one.threshold();
      if (rows[i].score < threshold) {
        EXPECT_EQ(static_cast<int64_t>(one.k()), k);
      }
      one.Push(rows[i].score, rows[i].index);
      (i % 3 == 0 ? first : second).Push(rows[i].score, rows[i].index);
      EXPECT_GE(one.threshold(), threshold);
    }
    const std::vector<Scored> expected = BestBySorting(rows, k);
    ExpectSame(one.Sorted(), expected);
    ExpectSame(one.Sorted(), expected);
    first.Merge(second);
    ExpectSame(first.Sorted(), expected);
    if (HasFailure()) FAIL() << "seed " << kSeed << " trial " << trial << " n " << n << " k " << k;
  }
}

// As scores are: nearly all of them different. From no rows to more than are sorted by counting.
TEST(TopKTest, EqualsSortingWithFewTiesOrNone) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  for (int64_t k = 0; k <= 130; ++k) {
    for (const int ties : {0, 1, 3}) {
      std::vector<Scored> rows;
      for (int i = 0; i < 400; ++i) rows.push_back({normal(random), i});
      for (int i = 0; i < ties; ++i) rows[random() % rows.size()].score = rows[random() % rows.size()].score;
      rows[random() % rows.size()].score = std::numeric_limits<float>::infinity();
      TopK top(k);
      for (const Scored& row : rows) top.Push(row.score, row.index);
      ExpectSame(top.Sorted(), BestBySorting(rows, k));
      top.Push(std::numeric_limits<float>::max(), 1000);
      rows.push_back({std::numeric_limits<float>::max(), 1000});
      ExpectSame(top.Sorted(), BestBySorting(rows, k));
      if (HasFailure()) FAIL() << "k " << k << " ties " << ties;
    }
  }
}

TEST(TopKTest, ThresholdIsTheWorstOfTheBest) {
  TopK top(3);
  EXPECT_EQ(top.threshold(), -std::numeric_limits<float>::infinity());
  top.Push(1, 0);
  top.Push(2, 1);
  EXPECT_EQ(top.threshold(), -std::numeric_limits<float>::infinity());
  top.Push(3, 2);
  EXPECT_EQ(top.threshold(), 1);
  top.Push(1, 5);  // a tie with a higher index stays out
  ExpectSame(top.Sorted(), {{3, 2}, {2, 1}, {1, 0}});
  top.Push(2, 0);  // pushing goes on after sorting
  ExpectSame(top.Sorted(), {{3, 2}, {2, 0}, {2, 1}});
}

TEST(TopKTest, ZeroTakesNothing) {
  TopK top(0);
  EXPECT_EQ(top.threshold(), std::numeric_limits<float>::infinity());
  top.Push(1, 0);
  top.Push(std::numeric_limits<float>::infinity(), 1);
  EXPECT_TRUE(top.Sorted().empty());
}

TEST(TopKTest, HugeKKeepsAllAndReservesNothing) {
  for (const int64_t k : {int64_t{1'000'000'000}, std::numeric_limits<int64_t>::max()}) {
    TopK top(k);
    std::vector<Scored> rows;
    for (int i = 0; i < 1000; ++i) {
      rows.push_back({static_cast<float>(i % 17), i});
      top.Push(rows.back().score, i);
    }
    EXPECT_EQ(top.threshold(), -std::numeric_limits<float>::infinity());
    ExpectSame(top.Sorted(), BestBySorting(rows, k));
  }
}

TEST(TopKTest, NaNNeverEntersAndInfinitiesDo) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const int64_t k : {1, 2, 5, 100}) {
    TopK top(k);
    std::vector<Scored> rows;
    for (int i = 0; i < 200; ++i) {
      top.Push(std::numeric_limits<float>::quiet_NaN(), 3 * i);
      rows.push_back({i % 7 == 0 ? -kInfinity : i == 100 ? kInfinity : static_cast<float>(i % 5), 3 * i + 1});
      top.Push(rows.back().score, rows.back().index);
    }
    ExpectSame(top.Sorted(), BestBySorting(rows, k));
  }
}

TEST(TopKTest, ResetForgets) {
  TopK top(2);
  top.Push(5, 1);
  top.Push(6, 2);
  top.Reset(1);
  EXPECT_EQ(top.threshold(), -std::numeric_limits<float>::infinity());
  top.Push(1, 9);
  ExpectSame(top.Sorted(), {{1, 9}});
}

}  // namespace
}  // namespace mneme
