// SPDX-License-Identifier: Apache-2.0
#include "attention/rotary.h"

#include <cmath>
#include <vector>

#include "attention/reference.h"
#include "gtest/gtest.h"
#include "tests/attention/random_tensors.h"

namespace mneme {
namespace {

Rotary MakeRotary(RotaryLayout layout, int64_t pairs, double base, float magnitude = 1.0f) {
  Rotary rotary;
  rotary.layout = layout;
  rotary.magnitude = magnitude;
  for (int64_t i = 0; i < pairs; ++i) {
    rotary.inverse_frequencies.push_back(
        static_cast<float>(std::pow(base, -static_cast<double>(i) / static_cast<double>(pairs))));
  }
  return rotary;
}

std::vector<float> RandomRow(TestRandom& random, int64_t dim) {
  std::vector<float> row(static_cast<size_t>(dim));
  for (float& x : row) x = random.Normal();
  return row;
}

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  return reference::Dot({a.begin(), a.end()}, {b.begin(), b.end()});
}

TEST(RotaryTest, AgreesWithTheReference) {
  TestRandom random(7);
  SCOPED_TRACE(random.seed());
  ErrorTable errors("rotate, against a row's largest element");
  for (int trial = 0; trial < 4000; ++trial) {
    const int64_t pairs = random.Between(0, 66);
    const int64_t dim = 2 * pairs + random.Between(0, 40) + (pairs == 0 ? 1 : 0);
    const RotaryLayout layout = random.OneOf<RotaryLayout>(
        {RotaryLayout::kHalves, RotaryLayout::kInterleaved, RotaryLayout::kHalves, RotaryLayout::kNone});
    const float magnitude = random.Chance(0.5) ? 1.0f : 1.2f;
    const Rotary rotary = MakeRotary(layout, pairs, random.OneOf<double>({1e4, 5e5}), magnitude);
    const double limit = random.OneOf<double>({10, 4096, 1e6, 1e9});
    double position = std::uniform_real_distribution<double>(-limit, limit)(random.engine());
    if (random.Chance(0.7)) position = std::round(position);
    std::vector<float> row = RandomRow(random, dim);
    const std::vector<double> before(row.begin(), row.end());
    const std::vector<double> expected = reference::Rotate(rotary, position, before);
    Rotate(rotary, position, row.data());
    double largest = 0;
    for (const double x : before) largest = std::max(largest, std::fabs(x));
    for (size_t i = 0; i < row.size(); ++i) {
      const double error = std::fabs(static_cast<double>(row[i]) - expected[i]) / largest;
      // Beyond the exact reduction the angle itself, a double, is coarser.
      errors.Add(limit > 1e6 ? "positions to 1e9" : "positions to 1e6", error);
      ASSERT_LE(error, 3.5e-7) << "position " << position << " element " << i;
    }
  }
}

TEST(RotaryTest, PositionZeroChangesNothingAndTheRestStays) {
  TestRandom random(8);
  for (const RotaryLayout layout : {RotaryLayout::kHalves, RotaryLayout::kInterleaved, RotaryLayout::kNone}) {
    const Rotary rotary = MakeRotary(layout, 5, 1e4);
    const std::vector<float> row = RandomRow(random, 13);
    std::vector<float> rotated = row;
    Rotate(rotary, 0, rotated.data());
    EXPECT_EQ(rotated, row);
    RotateQueryByDistance(rotary, 0, rotated.data());
    EXPECT_EQ(rotated, row);
    Rotate(rotary, 3, rotated.data());
    for (size_t i = 10; i < 13; ++i) EXPECT_EQ(rotated[i], row[i]);
    EXPECT_EQ(rotated == row, layout == RotaryLayout::kNone);
  }
}

// x · R y = Rᵀ x · y, with the magnitude in R.
TEST(RotaryTest, TheTransposeIsTheGradientsWayBack) {
  TestRandom random(9);
  SCOPED_TRACE(random.seed());
  for (const RotaryLayout layout : {RotaryLayout::kHalves, RotaryLayout::kInterleaved, RotaryLayout::kNone}) {
    for (const double distance : {0.0, 1.0, 37.0, -5.0, 1e6}) {
      const Rotary rotary = MakeRotary(layout, 5, 1e4, 1.3f);
      const RotaryTurn turn = RotaryTurn::OfQueryByDistance(rotary, distance);
      const std::vector<float> x = RandomRow(random, 13), y = RandomRow(random, 13);
      std::vector<float> back = x, forth = y;
      turn.ApplyTransposed(back.data());
      turn.Apply(forth.data());
      EXPECT_NEAR(Dot(back, y), Dot(x, forth), 1e-5);
      if (layout != RotaryLayout::kNone && distance == 1.0) {
        std::vector<float> wrong = x;
        turn.Apply(wrong.data());
        EXPECT_GT(std::fabs(Dot(wrong, y) - Dot(x, forth)), 1e-3);
      }
    }
  }
}

TEST(RotaryTest, WorkedScores) {
  for (const auto& [layout, expected] :
       {std::pair{RotaryLayout::kHalves, 0.483006}, {RotaryLayout::kInterleaved, 0.685907}}) {
    const Rotary rotary = MakeRotary(layout, 2, 1e4);
    for (const auto& [at_query, at_key] : {std::pair{5, 2}, {105, 102}, {3, 0}}) {
      std::vector<float> query = {1, 0.5f, -0.3f, 2}, key = {0.2f, -1, 0.7f, 0.4f};
      Rotate(rotary, at_query, query.data());
      Rotate(rotary, at_key, key.data());
      EXPECT_NEAR(Dot(query, key), expected, 1e-6);
    }
    std::vector<float> query = {1, 0.5f, -0.3f, 2};
    const std::vector<float> key = {0.2f, -1, 0.7f, 0.4f};
    EXPECT_NEAR(Dot(query, key), 0.29, 1e-6);
    RotateQueryByDistance(rotary, 3, query.data());
    EXPECT_NEAR(Dot(query, key), expected, 1e-6);
  }
}

TEST(RotaryTest, ScoreDependsOnDistanceAlone) {
  TestRandom random(9);
  SCOPED_TRACE(random.seed());
  for (const RotaryLayout layout : {RotaryLayout::kHalves, RotaryLayout::kInterleaved}) {
    // All elements turn, or the upper half stays and takes no magnitude.
    for (const int64_t dim : {64, 128}) {
      const Rotary rotary = MakeRotary(layout, 32, 1e4, 1.3f);
      for (const double distance : {0.0, 1.0, 7.0, 2048.0, 1e6}) {
        const std::vector<float> query = RandomRow(random, dim), key = RandomRow(random, dim);
        std::vector<float> by_distance = query;
        RotateQueryByDistance(rotary, distance, by_distance.data());
        // The reference multiplies both sides by the magnitude, each once.
        std::vector<double> at_key(key.begin(), key.end());
        at_key = reference::Rotate(rotary, 0, at_key);
        std::vector<double> at_query(query.begin(), query.end());
        at_query = reference::Rotate(rotary, distance, at_query);
        EXPECT_NEAR(Dot(by_distance, key), reference::Dot(at_query, at_key), 2e-5);
        for (const double start : {1.0, 1000.0, 1e6}) {
          std::vector<float> q = query, k = key;
          Rotate(rotary, start + distance, q.data());
          Rotate(rotary, start, k.data());
          EXPECT_NEAR(Dot(q, k), Dot(by_distance, key), 4e-5);
        }
      }
    }
  }
}

TEST(RotaryTest, ATurnGivesTheSameBits) {
  TestRandom random(10);
  const Rotary rotary = MakeRotary(RotaryLayout::kHalves, 32, 1e4, 1.1f);
  const RotaryTurn by_position = RotaryTurn::ByPosition(rotary, 4097);
  const RotaryTurn by_distance = RotaryTurn::OfQueryByDistance(rotary, 4097);
  for (int head = 0; head < 9; ++head) {
    const std::vector<float> row = RandomRow(random, 64);
    std::vector<float> a = row, b = row;
    Rotate(rotary, 4097, a.data());
    by_position.Apply(b.data());
    EXPECT_EQ(a, b);
    a = b = row;
    RotateQueryByDistance(rotary, 4097, a.data());
    by_distance.Apply(b.data());
    EXPECT_EQ(a, b);
    b = row;
    RotaryTurn().Apply(b.data());
    EXPECT_EQ(b, row);
  }
}

}  // namespace
}  // namespace mneme
