// SPDX-License-Identifier: Apache-2.0
#include "attention/reference.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::reference {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::Pointwise;

constexpr double kDigits = 6e-7;  // the worked numbers have six decimals

// The worked example of Memorizing Transformers: keys on the unit circle, two rows retrieved.
Problem MemorizingExample() {
  Problem problem;
  problem.query = {1, 0};
  problem.memory_query = {1, 0};
  problem.scale = 2;
  const double root = std::sqrt(3.0) / 2;
  problem.memory_keys = {{1, 0}, {0.5, root}, {0, 1}, {-1, 0}};
  problem.memory_values = {{1, 0}, {0, 1}, {2, 2}, {5, 5}};
  problem.memory_token = {0, 1, 2, 3};
  problem.memory_position = {0, 1, 2, 3};
  problem.memory_pinned = {false, false, false, false};
  problem.local_keys = {{1, 0}, {0, 1}};
  problem.local_values = {{0, 0}, {4, 0}};
  problem.local_visible = {true, true};
  problem.value_dim = 2;
  problem.query_position = 6;
  problem.top_k = 2;
  problem.gate = 0.5;
  return problem;
}

TEST(ReferenceTest, MemoryOnly) {
  Problem problem = MemorizingExample();
  problem.fusion = Fusion::kMemoryOnly;
  const Result result = Attend(problem);
  EXPECT_THAT(result.tokens, ElementsAre(0, 1));
  EXPECT_THAT(result.logits, Pointwise(DoubleNear(1e-12), {2.0, 1.0}));
  const double total = std::exp(result.state.log_sum_exp);
  EXPECT_NEAR(std::exp(result.logits[0]) / total, 0.731059, kDigits);
  EXPECT_NEAR(std::exp(result.logits[1]) / total, 0.268941, kDigits);
  EXPECT_THAT(result.state.output, Pointwise(DoubleNear(kDigits), {0.731059, 0.268941}));
  EXPECT_EQ(result.memory_mass, 1);
}

TEST(ReferenceTest, LocalOnly) {
  Problem problem = MemorizingExample();
  problem.fusion = Fusion::kLocalOnly;
  const Result result = Attend(problem);
  EXPECT_THAT(result.state.output, Pointwise(DoubleNear(kDigits), {0.476812, 0.0}));
  EXPECT_EQ(result.memory_mass, 0);
}

TEST(ReferenceTest, Gated) {
  Problem problem = MemorizingExample();
  problem.fusion = Fusion::kGated;
  const Result result = Attend(problem);
  EXPECT_NEAR(result.memory_mass, 0.622459, kDigits);
  EXPECT_THAT(result.state.output, Pointwise(DoubleNear(kDigits), {0.635070, 0.167405}));
}

TEST(ReferenceTest, Joint) {
  Problem problem = MemorizingExample();
  const Result result = Attend(problem);
  EXPECT_THAT(result.state.output, Pointwise(DoubleNear(kDigits), {0.615745, 0.146963}));
}

TEST(ReferenceTest, GateLimits) {
  Problem problem = MemorizingExample();
  problem.fusion = Fusion::kGated;
  problem.gate = -1000;
  EXPECT_THAT(Attend(problem).state.output, Pointwise(DoubleNear(kDigits), {0.476812, 0.0}));
  problem.gate = 1000;
  problem.top_k = 4;
  const std::vector<double> gated = Attend(problem).state.output;
  problem.fusion = Fusion::kMemoryOnly;
  EXPECT_THAT(gated, Pointwise(DoubleNear(1e-12), Attend(problem).state.output));
}

// An empty memory leaves (1 - g) V_c under the gate, as the paper's code does, and V_c in one softmax.
TEST(ReferenceTest, EmptyMemory) {
  Problem problem = MemorizingExample();
  problem.top_k = 0;
  EXPECT_THAT(Attend(problem).state.output, Pointwise(DoubleNear(kDigits), {0.476812, 0.0}));
  EXPECT_EQ(Attend(problem).memory_mass, 0);
  problem.fusion = Fusion::kGated;
  EXPECT_THAT(Attend(problem).state.output, Pointwise(DoubleNear(kDigits), {0.476812 * (1 - 0.622459), 0.0}));
  problem.fusion = Fusion::kMemoryOnly;
  EXPECT_THAT(Attend(problem).state.output, ElementsAre(0, 0));
  EXPECT_EQ(Attend(problem).state.log_sum_exp, -std::numeric_limits<double>::infinity());
}

// All rows retrieved and one softmax: dense attention over everything.
TEST(ReferenceTest, WholeMemoryJointIsDenseAttention) {
  Problem problem = MemorizingExample();
  problem.top_k = 100;
  problem.soft_cap = 1.5;
  const Result result = Attend(problem);
  std::vector<double> logits;
  std::vector<std::vector<double>> values = problem.memory_values;
  values.insert(values.end(), problem.local_values.begin(), problem.local_values.end());
  for (const auto* keys : {&problem.memory_keys, &problem.local_keys}) {
    for (const auto& key : *keys) logits.push_back(SoftCap(2 * Dot(problem.query, key), 1.5));
  }
  const State dense = Softmax(logits, values, 2, [](int64_t) { return true; });
  EXPECT_THAT(result.state.output, Pointwise(DoubleNear(1e-12), dense.output));
  EXPECT_NEAR(result.state.log_sum_exp, dense.log_sum_exp, 1e-12);
}

TEST(ReferenceTest, BiasAndDecayRankAndSparePinnedRows) {
  Problem problem = MemorizingExample();
  problem.memory_bias = 0.25;
  problem.decay = 0.5;
  problem.decay_beyond = 4;
  problem.memory_token = {-10, 1, 2, 3};  // ages 16, 5, 4, 3
  problem.top_k = 4;
  Result result = Attend(problem);
  EXPECT_THAT(result.tokens, ElementsAre(-10, 1, 2, 3));
  EXPECT_THAT(result.logits, Pointwise(DoubleNear(1e-12), {2.25 - 0.5 * 2, 1.25 - 0.5 * std::log2(1.25), 0.25, -1.75}));
  problem.decay = 3;
  EXPECT_THAT(Attend(problem).tokens, ElementsAre(1, 2, 3, -10));
  problem.memory_pinned[0] = true;
  result = Attend(problem);
  EXPECT_EQ(result.tokens[0], -10);
  EXPECT_NEAR(result.logits[0], 2, 1e-12);
}

TEST(ReferenceTest, TopKBreaksTiesByTheLowerNumber) {
  EXPECT_THAT(TopK({1, 3, 2, 3, 1}, 4), ElementsAre(1, 3, 2, 0));
  EXPECT_THAT(TopK({1, 3}, 5), ElementsAre(1, 0));
  EXPECT_THAT(TopK({}, 5), ElementsAre());
}

Rotary FourDimensions(RotaryLayout layout) {
  Rotary rotary;
  rotary.layout = layout;
  rotary.inverse_frequencies = {1.0f, 0.01f};  // base 10,000
  return rotary;
}

const std::vector<double> kQuery = {1, 0.5, -0.3, 2};
const std::vector<double> kKey = {0.2, -1, 0.7, 0.4};

TEST(ReferenceTest, RotaryScoreDependsOnDistanceAlone) {
  const Rotary halves = FourDimensions(RotaryLayout::kHalves);
  const Rotary interleaved = FourDimensions(RotaryLayout::kInterleaved);
  for (const auto& [query, key] : {std::pair{5, 2}, {105, 102}, {3, 0}}) {
    EXPECT_NEAR(Dot(Rotate(halves, query, kQuery), Rotate(halves, key, kKey)), 0.483006, kDigits);
    EXPECT_NEAR(Dot(Rotate(interleaved, query, kQuery), Rotate(interleaved, key, kKey)), 0.685907, kDigits);
  }
  EXPECT_NEAR(Dot(kQuery, kKey), 0.29, 1e-12);
}

// The query stands at 100, keys at distances 1, 4, 16, 100 have the same unrotated key.
TEST(ReferenceTest, ClampedDistance) {
  Problem problem;
  problem.query = kQuery;
  problem.memory_query = kQuery;
  problem.memory_keys.assign(4, kKey);
  problem.memory_values.assign(4, {1.0});
  problem.memory_token = {99, 96, 84, 0};
  problem.memory_position = {99, 96, 84, 0};
  problem.memory_pinned.assign(4, false);
  problem.value_dim = 1;
  problem.rotary = FourDimensions(RotaryLayout::kHalves);
  problem.policy = PositionPolicy::kClamped;
  problem.query_position = 100;
  problem.top_k = 4;
  const auto scores = [&problem](double window) {
    problem.distance = window;
    const Result result = Attend(problem);
    std::vector<double> by_distance(4);
    for (size_t i = 0; i < 4; ++i) {
      for (size_t j = 0; j < 4; ++j) {
        if (result.tokens[j] == problem.memory_token[i]) by_distance[i] = result.logits[j];
      }
    }
    return by_distance;
  };
  EXPECT_THAT(scores(0), Pointwise(DoubleNear(kDigits), {0.29, 0.29, 0.29, 0.29}));
  EXPECT_THAT(scores(4), Pointwise(DoubleNear(kDigits), {0.956100, -0.180897, -0.180897, -0.180897}));
  EXPECT_THAT(scores(16), Pointwise(DoubleNear(kDigits), {0.956100, -0.180897, 0.437438, 0.437438}));
  EXPECT_THAT(scores(1e9), Pointwise(DoubleNear(kDigits), {0.956100, -0.180897, 0.437438, 1.619866}));
  for (size_t i = 0; i < 4; ++i) {  // a window without end is what full attention gives
    const auto key = Rotate(problem.rotary, static_cast<double>(problem.memory_position[i]), kKey);
    EXPECT_NEAR(scores(1e9)[i], Dot(Rotate(problem.rotary, 100, kQuery), key), 1e-12);
  }
  problem.policy = PositionPolicy::kFixedDistance;
  EXPECT_THAT(scores(4), Pointwise(DoubleNear(kDigits), {-0.180897, -0.180897, -0.180897, -0.180897}));
  problem.policy = PositionPolicy::kNone;
  EXPECT_THAT(scores(4), Pointwise(DoubleNear(kDigits), {0.29, 0.29, 0.29, 0.29}));
}

// YaRN's factor applies to both sides, and not to the elements that are not rotated.
TEST(ReferenceTest, MagnitudeCountsOnBothSides) {
  Problem problem;
  problem.rotary.layout = RotaryLayout::kHalves;
  problem.rotary.inverse_frequencies = {1.0f};
  problem.rotary.magnitude = 1.25f;
  problem.memory_query = kQuery;
  problem.query = kQuery;
  problem.memory_keys = {kKey};
  problem.memory_values = {{1.0}};
  problem.memory_token = {2};
  problem.memory_position = {2};
  problem.memory_pinned = {false};
  problem.value_dim = 1;
  problem.top_k = 1;
  problem.policy = PositionPolicy::kFixedDistance;
  problem.distance = 3;
  const double expected = Dot(Rotate(problem.rotary, 5, kQuery), Rotate(problem.rotary, 2, kKey));
  EXPECT_NEAR(Attend(problem).logits[0], expected, 1e-12);
}

}  // namespace
}  // namespace mneme::reference
