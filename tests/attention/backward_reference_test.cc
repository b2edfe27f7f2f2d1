// SPDX-License-Identifier: Apache-2.0
// The derivatives of the double-precision definition against central differences of its forward pass.
#include "attention/backward_reference.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "gtest/gtest.h"
#include "tests/attention/random_tensors.h"

namespace mneme::reference {
namespace {

std::vector<double> RandomRow(TestRandom& random, int64_t dim) {
  std::vector<double> row;
  for (int64_t i = 0; i < dim; ++i) row.push_back(static_cast<double>(random.Normal()));
  return row;
}

Problem RandomProblem(TestRandom& random) {
  Problem problem;
  const int64_t dim = 2 * random.Between(1, 4);
  problem.value_dim = random.Between(1, 5);
  problem.query = RandomRow(random, dim);
  problem.memory_query = RandomRow(random, dim);
  const int64_t rows = random.OneOf<int64_t>({0, 1, random.Between(2, 12)});
  problem.query_position = rows + 3;
  for (int64_t token = 0; token < rows; ++token) {
    problem.memory_keys.push_back(RandomRow(random, dim));
    problem.memory_values.push_back(RandomRow(random, problem.value_dim));
    problem.memory_token.push_back(token);
    problem.memory_position.push_back(token + random.Between(0, 2));
    problem.memory_pinned.push_back(token < 2);
  }
  for (int64_t row = random.OneOf<int64_t>({0, 1, 6}); row > 0; --row) {
    problem.local_keys.push_back(RandomRow(random, dim));
    problem.local_values.push_back(RandomRow(random, problem.value_dim));
    problem.local_visible.push_back(random.Chance(0.7));
  }
  problem.rotary.layout = static_cast<RotaryLayout>(random.Between(0, 2));
  for (int64_t pair = random.Between(1, dim / 2); pair > 0; --pair) {
    problem.rotary.inverse_frequencies.push_back(std::exp(random.Normal()));
  }
  problem.rotary.magnitude = random.OneOf<float>({1.0f, 1.2f});
  problem.policy = static_cast<PositionPolicy>(random.Between(0, 3));
  problem.distance = static_cast<double>(random.Between(0, 9));
  problem.top_k = random.Between(0, 8);
  problem.scale = 0.3 + std::fabs(static_cast<double>(random.Normal()));
  problem.soft_cap = random.OneOf<double>({0, 2, 30});
  problem.decay = random.OneOf<double>({0, 0.3});
  problem.gate = static_cast<double>(random.Normal());
  problem.fusion = static_cast<Fusion>(random.Between(0, 3));
  problem.memory_bias = problem.fusion == Fusion::kJoint ? static_cast<double>(random.Normal()) : 0;
  return problem;
}

// Whether a small step can change the retrieved set.
bool NearlyTied(const Problem& problem) {
  std::vector<double> logits = Score(problem).memory_logits;
  if (problem.top_k == 0 || static_cast<int64_t>(logits.size()) <= problem.top_k) return false;
  std::sort(logits.begin(), logits.end(), std::greater<>());
  const auto k = static_cast<size_t>(problem.top_k);
  return logits[k - 1] - logits[k] < 1e-4;
}

class BackwardReferenceTest : public ::testing::Test {
 protected:
  // A loss that is linear in what Attend returns.
  double Loss(const Problem& problem) const {
    const State state = Attend(problem).state;
    double loss = Dot(output_gradient_, state.output);
    if (std::isfinite(state.log_sum_exp)) loss += log_sum_exp_gradient_ * state.log_sum_exp;
    return loss;
  }

  void ExpectDerivative(Problem& problem, double& x, double gradient, const char* what) {
    constexpr double kStep = 1e-5;
    const double before = x;
    x = before + kStep;
    const double above = Loss(problem);
    x = before - kStep;
    const double below = Loss(problem);
    x = before;
    const double difference = (above - below) / (2 * kStep);
    EXPECT_NEAR(gradient, difference, 2e-7 * (1 + std::fabs(difference))) << what;
    compared_ += gradient != 0;
  }

  void ExpectDerivatives(Problem& problem, std::vector<double>& row, const std::vector<double>& gradient,
                         const char* what) {
    ASSERT_EQ(row.size(), gradient.size());
    for (size_t i = 0; i < row.size(); ++i) ExpectDerivative(problem, row[i], gradient[i], what);
  }

  std::vector<double> output_gradient_;
  double log_sum_exp_gradient_ = 0;
  int compared_ = 0;
};

TEST_F(BackwardReferenceTest, AgreesWithCentralDifferences) {
  TestRandom random(901);
  SCOPED_TRACE(random.seed());
  for (int trial = 0; trial < 2000; ++trial) {
    Problem problem = RandomProblem(random);
    if (NearlyTied(problem)) continue;
    SCOPED_TRACE(::testing::Message() << "trial " << trial << " fusion " << static_cast<int>(problem.fusion));
    output_gradient_ = RandomRow(random, problem.value_dim);
    log_sum_exp_gradient_ = random.Chance(0.5) ? 0 : static_cast<double>(random.Normal());
    const Gradients gradients = Backward(problem, output_gradient_, log_sum_exp_gradient_);
    ExpectDerivatives(problem, problem.query, gradients.query, "query");
    ExpectDerivatives(problem, problem.memory_query, gradients.memory_query, "memory_query");
    for (size_t row = 0; row < problem.local_keys.size(); ++row) {
      ExpectDerivatives(problem, problem.local_keys[row], gradients.local_keys[row], "local_keys");
      ExpectDerivatives(problem, problem.local_values[row], gradients.local_values[row], "local_values");
    }
    // The bias is of joint fusion only.
    if (problem.fusion == Fusion::kJoint) {
      ExpectDerivative(problem, problem.memory_bias, gradients.memory_bias, "memory_bias");
    }
    ExpectDerivative(problem, problem.gate, gradients.gate, "gate");
    ExpectDerivative(problem, problem.scale, gradients.scale, "scale");
    if (HasFailure()) return;
  }
  EXPECT_GT(compared_, 20000) << "most derivatives are zero: the problems are too easy";
}

TEST_F(BackwardReferenceTest, NormalisationAgreesWithCentralDifferences) {
  TestRandom random(902);
  for (int trial = 0; trial < 100; ++trial) {
    std::vector<double> x = RandomRow(random, 6);
    if (trial % 4 == 0) x.assign(6, 1e-4);  // the 1e-6 counts
    const std::vector<double> upstream = RandomRow(random, 6);
    const auto loss = [&] { return Dot(upstream, x) / std::sqrt(Dot(x, x) + 1e-6); };
    const std::vector<double> gradient = NormaliseBackward(x, upstream);
    for (size_t i = 0; i < x.size(); ++i) {
      constexpr double kStep = 1e-7;
      const double before = x[i];
      x[i] = before + kStep;
      const double above = loss();
      x[i] = before - kStep;
      const double below = loss();
      x[i] = before;
      const double difference = (above - below) / (2 * kStep);
      ASSERT_NEAR(gradient[i], difference, 1e-5 * (1 + std::fabs(difference)));
    }
  }
}

// The numbers of the paper's formulas, worked by hand: two retrieved rows with weights p = sigmoid(1), 1 - p.
TEST_F(BackwardReferenceTest, GatedExampleByHand) {
  Problem problem;
  problem.query = {1, 0};
  problem.memory_query = {1, 0};
  problem.memory_keys = {{1, 0}, {0, 1}};
  problem.memory_values = {{1}, {0}};
  problem.memory_token = problem.memory_position = {0, 1};
  problem.memory_pinned = {false, false};
  problem.local_keys = {{0, 1}};
  problem.local_values = {{3}};
  problem.local_visible = {true};
  problem.value_dim = 1;
  problem.top_k = 2;
  problem.fusion = Fusion::kGated;
  problem.gate = 0;
  const double p = 1 / (1 + std::exp(-1.0));
  const Gradients gradients = Backward(problem, {2}, 0);
  EXPECT_NEAR(gradients.gate, 0.25 * 2 * (p - 3), 1e-12);           // s (1 - s) u (V_m - V_c)
  EXPECT_NEAR(gradients.memory_query[0], p * (1 - p) * 1, 1e-12);   // d_1 = p_1 (s u) (v_1 - V_m)
  EXPECT_NEAR(gradients.memory_query[1], -p * (1 - p) * 1, 1e-12);  // d_2 = -d_1
  EXPECT_NEAR(gradients.scale, p * (1 - p), 1e-12);                 // d_1 z_1 + d_2 z_2
  EXPECT_NEAR(gradients.local_values[0][0], 0.5 * 2, 1e-12);        // (1 - s) u
  EXPECT_NEAR(gradients.query[0], 0, 1e-12);                        // one local row: its weight is 1
}

}  // namespace
}  // namespace mneme::reference
