// SPDX-License-Identifier: Apache-2.0
#include "attention/state.h"

#include <cmath>
#include <limits>
#include <vector>

#include "attention/reference.h"
#include "attention/retrieved.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/attention/random_tensors.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::Pointwise;

// (output, log_sum_exp) of rows [begin, end).
std::pair<std::vector<float>, float> StateOf(const std::vector<float>& logits,
                                             const std::vector<std::vector<float>>& values, size_t begin, size_t end) {
  std::vector<const void*> rows;
  for (size_t i = begin; i < end; ++i) rows.push_back(values[i].data());
  std::vector<float> output(values[0].size());
  const float log_sum_exp = AttendRetrieved(logits.data() + begin, rows.data(), static_cast<int64_t>(rows.size()),
                                            DType::kF32, static_cast<int64_t>(output.size()), output.data());
  return {output, log_sum_exp};
}

TEST(StateTest, SplittingASetAnywhereGivesTheSame) {
  TestRandom random(101);
  SCOPED_TRACE(random.seed());
  ErrorTable errors("merge");
  for (const float deviation : {0.1f, 2.0f, 30.0f}) {
    std::vector<float> logits(40);
    std::vector<std::vector<float>> values(logits.size(), std::vector<float>(65));
    for (size_t i = 0; i < logits.size(); ++i) {
      logits[i] = random.Normal(deviation);
      for (float& x : values[i]) x = random.Normal();
    }
    const auto [whole, whole_log_sum_exp] = StateOf(logits, values, 0, logits.size());
    for (size_t split = 0; split <= logits.size(); ++split) {
      auto [output, log_sum_exp] = StateOf(logits, values, 0, split);
      const auto [other, other_log_sum_exp] = StateOf(logits, values, split, logits.size());
      MergeState(output.data(), &log_sum_exp, other.data(), other_log_sum_exp, 65);
      EXPECT_NEAR(log_sum_exp, whole_log_sum_exp, 1e-6 * (1 + std::fabs(whole_log_sum_exp)));
      for (size_t d = 0; d < output.size(); ++d) {
        const double error = std::fabs(static_cast<double>(output[d]) - static_cast<double>(whole[d]));
        errors.Add("output", error);
        EXPECT_LE(error, 5e-6) << "split at " << split;  // an lse near 100 carries 4e-6 of its own
      }
    }
  }
}

TEST(StateTest, MergesAsTheReferenceDoes) {
  const reference::State a{{1, -2, 0.5}, 0.25}, b{{-3, 4, 8}, 1.5};
  const reference::State expected = reference::Merge(a, b);
  std::vector<float> output = {1, -2, 0.5f};
  float log_sum_exp = 0.25f;
  const std::vector<float> other = {-3, 4, 8};
  MergeState(output.data(), &log_sum_exp, other.data(), 1.5f, 3);
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(output[i], expected.output[i], 1e-6);
  EXPECT_NEAR(log_sum_exp, expected.log_sum_exp, 2e-7);
}

TEST(StateTest, MergingWithTheEmptyStateChangesNoBit) {
  const std::vector<float> one = {0.1f, -0.0f, 3e-41f};
  std::vector<float> output = one;
  float log_sum_exp = -77.7f;
  const std::vector<float> nothing = {0, 0, 0};
  MergeState(output.data(), &log_sum_exp, nothing.data(), kEmptyLogSumExp, 3);
  EXPECT_EQ(0, std::memcmp(output.data(), one.data(), 12));
  EXPECT_EQ(log_sum_exp, -77.7f);

  output = nothing;
  log_sum_exp = kEmptyLogSumExp;
  MergeState(output.data(), &log_sum_exp, nothing.data(), kEmptyLogSumExp, 3);
  EXPECT_THAT(output, ElementsAre(0, 0, 0));
  EXPECT_EQ(log_sum_exp, kEmptyLogSumExp);

  MergeState(output.data(), &log_sum_exp, one.data(), -77.7f, 3);
  EXPECT_EQ(0, std::memcmp(output.data(), one.data(), 12));
  EXPECT_EQ(log_sum_exp, -77.7f);
}

TEST(StateTest, MergesFarApartMasses) {
  std::vector<float> output = {1, 2};
  float log_sum_exp = -1e4f;
  const std::vector<float> other = {5, 6};
  MergeState(output.data(), &log_sum_exp, other.data(), 1e4f, 2);
  EXPECT_THAT(output, ElementsAre(5, 6));
  EXPECT_EQ(log_sum_exp, 1e4f);
}

// Memorizing Transformers' worked example, and the joint softmax of the same two states.
TEST(StateTest, WorkedExample) {
  const std::vector<float> memory = {0.731059f, 0.268941f};
  std::vector<float> local = {0.476812f, 0.0f};
  GateState(local.data(), memory.data(), 0.5f, 2);
  EXPECT_THAT(local, Pointwise(FloatNear(1e-6f), {0.635070f, 0.167405f}));

  std::vector<float> output = {0.476812f, 0.0f};
  auto log_sum_exp = static_cast<float>(std::log(std::exp(2.0) + 1));
  const auto of_memory = static_cast<float>(std::log(std::exp(2.0) + std::exp(1.0)));
  MergeState(output.data(), &log_sum_exp, memory.data(), of_memory, 2);
  EXPECT_THAT(output, Pointwise(FloatNear(1e-6f), {0.615745f, 0.146963f}));
}

TEST(StateTest, GateIsSteadyAtItsEnds) {
  const std::vector<float> memory = {3, -3};
  for (const float gate : {100.0f, 1e4f, std::numeric_limits<float>::infinity()}) {
    std::vector<float> local = {7, 9};
    GateState(local.data(), memory.data(), gate, 2);
    EXPECT_THAT(local, ElementsAre(3, -3));
    local = {7, 9};
    GateState(local.data(), memory.data(), -gate, 2);
    EXPECT_THAT(local, ElementsAre(7, 9));
  }
  std::vector<float> local = {2, 4};  // no memory yet: the zero vector
  const std::vector<float> nothing = {0, 0};
  GateState(local.data(), nothing.data(), 0.0f, 2);
  EXPECT_THAT(local, ElementsAre(1, 2));
}

}  // namespace
}  // namespace mneme
