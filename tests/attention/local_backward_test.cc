// SPDX-License-Identifier: Apache-2.0
#include "attention/local_backward.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "attention/attend_kernels.h"
#include "attention/backward_reference.h"
#include "gtest/gtest.h"
#include "tests/attention/local_case.h"

namespace mneme {
namespace {

int64_t RandomDim(TestRandom& random) {
  return random.OneOf<int64_t>({1, 3, 8, 16, 24, 63, 64, 65, 80, 128});
}

LocalSizes RandomSizes(TestRandom& random, int64_t most_rows, int64_t most_queries) {
  LocalSizes sizes = {.rows = random.OneOf<int64_t>({0, 1, 63, 64, 65, 129, random.Between(0, most_rows)}),
                      .key_dim = RandomDim(random),
                      .value_dim = RandomDim(random),
                      .group = random.OneOf<int64_t>({1, 1, 2, 3, 4, 8, 70}),
                      .query_count = 0};
  sizes.query_count = random.OneOf<int64_t>({1, 2, random.Between(1, sizes.group > 8 ? 3 : most_queries)});
  return sizes;
}

// A problem with the gradients that come in.
struct Case : LocalCase {
  Case(TestRandom& random, DType dtype, int64_t most_rows, int64_t most_queries)
      : LocalCase(random, dtype, RandomSizes(random, most_rows, most_queries)) {
    const auto pairs = static_cast<size_t>(query_count * group);
    output_gradients.resize(pairs * static_cast<size_t>(value_dim));
    offsets.resize(pairs);
    for (auto* floats : {&output_gradients, &offsets}) {
      for (float& x : *floats) x = random.Normal();
    }
    for (int64_t g = 0; g < group; ++g) {
      scales.push_back(random.OneOf<float>({1.0f, 2.0f, -1.0f}) / std::sqrt(static_cast<float>(key_dim)));
    }
  }

  std::vector<float> output_gradients, offsets;
};

// Sums in double of a gradient, and of the sizes of its terms before cancellation.
struct Sums {
  explicit Sums(size_t n) : value(n), size(n) {}
  void Add(size_t i, double term, double term_size) {
    value[i] += term;
    size[i] += std::fabs(term_size);
  }
  std::vector<double> value, size;
};

struct Expected {
  explicit Expected(const Case& c)
      : queries(c.queries.size()),
        keys(static_cast<size_t>(c.rows * c.key_dim)),
        values(static_cast<size_t>(c.rows * c.value_dim)),
        scales(static_cast<size_t>(c.group)) {}
  Sums queries, keys, values, scales;
};

// The sum of the sizes of the products of a and b.
double SizeOf(const std::vector<double>& a, const std::vector<double>& b) {
  double size = 0;
  for (size_t i = 0; i < a.size(); ++i) size += std::fabs(a[i] * b[i]);
  return size;
}

// The definition: each weight's own softmax, then p_j (u·v_j - t) times the slope of the soft cap.
Expected Definition(const Case& c) {
  Expected expected(c);
  for (int64_t pair = 0; pair < c.query_count * c.group; ++pair) {
    const int64_t query = pair / c.group, g = pair % c.group;
    const float* const q = c.queries.data() + pair * c.key_dim;
    const float* const u = c.output_gradients.data() + pair * c.value_dim;
    const std::vector<double> wide(q, q + c.key_dim), upstream(u, u + c.value_dim);
    const auto scale = static_cast<double>(c.scales[static_cast<size_t>(g)]), cap = static_cast<double>(c.soft_cap);
    std::vector<double> logits, dots;
    std::vector<std::vector<double>> keys, values;
    double sum = 0;
    for (int64_t j = 0; j < c.rows; ++j) {
      keys.push_back(c.keys.Row(c.row_begin + j, c.head));
      values.push_back(c.values.Row(c.row_begin + j, c.head));
      dots.push_back(reference::Dot(wide, keys.back()));
      logits.push_back(reference::SoftCap(scale * dots.back(), cap));
      if (c.mask.Visible(c.first_query + query, j)) sum += std::exp(logits.back());
    }
    for (int64_t j = 0; j < c.rows; ++j) {
      if (!c.mask.Visible(c.first_query + query, j)) continue;
      const auto at = static_cast<size_t>(j);
      const double weight = std::exp(logits[at]) / sum;
      const double product = reference::Dot(upstream, values[at]);
      const auto offset = static_cast<double>(c.offsets[static_cast<size_t>(pair)]);
      const double slope = weight * reference::SoftCapSlope(scale * dots[at], cap);
      const double by_score = slope * (product - offset);
      const double size = weight * (SizeOf(upstream, values[at]) + std::fabs(offset));
      expected.scales.Add(static_cast<size_t>(g), by_score * dots[at], size * SizeOf(wide, keys[at]));
      for (int64_t d = 0; d < c.key_dim; ++d) {
        const auto i = static_cast<size_t>(d);
        expected.queries.Add(static_cast<size_t>(pair * c.key_dim + d), by_score * scale * keys[at][i],
                             size * scale * keys[at][i]);
        expected.keys.Add(static_cast<size_t>(j * c.key_dim + d), by_score * scale * wide[i], size * scale * wide[i]);
      }
      for (int64_t d = 0; d < c.value_dim; ++d) {
        const double term = weight * upstream[static_cast<size_t>(d)];
        expected.values.Add(static_cast<size_t>(j * c.value_dim + d), term, term);
      }
    }
  }
  return expected;
}

struct Answer {
  std::vector<float> queries, keys, values;  // keys, values: [rows][PaddedDim]
  std::vector<double> scales;
};

class LocalBackwardTest : public EachTarget {
 protected:
  Answer Backward(const Case& c, bool all = true) {
    const AttendKernels& kernels = AttendKernelsFor(GetParam());
    const auto pairs = static_cast<size_t>(c.query_count * c.group);
    std::vector<float> output(pairs * static_cast<size_t>(c.value_dim)), log_sum_exp(pairs);
    AttendLocalWith(kernels, c.Problem(), 0, output.data(), log_sum_exp.data());
    Answer answer;
    answer.queries.assign(c.queries.size(), 1e30f);
    answer.keys.resize(static_cast<size_t>(c.rows * PaddedDim(c.key_dim)));
    answer.values.resize(static_cast<size_t>(c.rows * PaddedDim(c.value_dim)));
    answer.scales.resize(static_cast<size_t>(c.group));
    LocalGradients gradients = {answer.queries.data(), answer.keys.data(), answer.values.data(), answer.scales.data()};
    if (!all) gradients = {.values = answer.values.data()};
    AttendLocalBackwardWith(kernels, c.Problem(), {log_sum_exp.data(), c.output_gradients.data(), c.offsets.data()},
                            gradients);
    return answer;
  }

  // stride: floats from each row of `got` to the next.
  void Compare(const std::string& what, const Sums& expected, const float* got, int64_t dim, int64_t stride) {
    for (size_t i = 0; i < expected.value.size(); ++i) {
      const auto row = static_cast<int64_t>(i) / dim, element = static_cast<int64_t>(i) % dim;
      const double error = std::fabs(static_cast<double>(got[row * stride + element]) - expected.value[i]);
      const double allowed = 1e-4 + expected.size[i];
      errors_.Add(what, error / allowed);
      ASSERT_LE(error, 5e-6 * allowed) << what << " row " << row << " element " << element;
    }
  }

  ErrorTable errors_{"local backward " + std::string(CpuTargetName(GetParam())) + ", against the sum of sizes"};
};

TEST_P(LocalBackwardTest, AgreesWithTheReference) {
  TestRandom random(311);
  SCOPED_TRACE(random.seed());
  for (int trial = 0; trial < 600; ++trial) {
    const DType dtype = std::vector<DType>{DType::kF32, DType::kF16, DType::kBF16}[static_cast<size_t>(trial % 3)];
    const Case c(random, dtype, 200, trial % 10 == 0 ? 70 : 6);
    SCOPED_TRACE(c.Describe());
    const Expected expected = Definition(c);
    const Answer answer = Backward(c);
    Compare("queries", expected.queries, answer.queries.data(), c.key_dim, c.key_dim);
    Compare("keys", expected.keys, answer.keys.data(), c.key_dim, PaddedDim(c.key_dim));
    Compare("values", expected.values, answer.values.data(), c.value_dim, PaddedDim(c.value_dim));
    const std::vector<float> scales(answer.scales.begin(), answer.scales.end());
    Compare("scales", expected.scales, scales.data(), c.group, c.group);
    if (HasFatalFailure()) return;
  }
}

// What stands in hidden rows is never multiplied: NaN there changes no bit.
TEST_P(LocalBackwardTest, HiddenRowsMayHoldAnything) {
  TestRandom random(312);
  SCOPED_TRACE(random.seed());
  for (int trial = 0; trial < 100; ++trial) {
    Case c(random, DType::kF32, 200, 6);
    const Answer before = Backward(c);
    for (int64_t j = 0; j < c.rows; ++j) {
      bool seen = false;
      for (int64_t i = 0; i < c.query_count; ++i) seen |= c.mask.Visible(c.first_query + i, j);
      if (seen) continue;
      constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
      c.keys.SetRow(c.row_begin + j, c.head, std::vector<float>(static_cast<size_t>(c.key_dim), kNaN));
      c.values.SetRow(c.row_begin + j, c.head, std::vector<float>(static_cast<size_t>(c.value_dim), kNaN));
    }
    const Answer after = Backward(c);
    ASSERT_EQ(before.queries, after.queries) << c.Describe();
    ASSERT_EQ(before.keys, after.keys) << c.Describe();
    ASSERT_EQ(before.values, after.values) << c.Describe();
    ASSERT_EQ(before.scales, after.scales) << c.Describe();
  }
}

TEST_P(LocalBackwardTest, WhatIsNotWantedStaysAndChangesNothingElse) {
  TestRandom random(313);
  for (int trial = 0; trial < 50; ++trial) {
    const Case c(random, DType::kBF16, 200, 6);
    const Answer all = Backward(c), values_alone = Backward(c, false);
    ASSERT_EQ(all.values, values_alone.values) << c.Describe();
    ASSERT_EQ(values_alone.queries, std::vector<float>(c.queries.size(), 1e30f));
  }
}

// Sums are added to what is there, so that tiles can share a buffer.
TEST_P(LocalBackwardTest, SumsAreAdded) {
  TestRandom random(314);
  const Case c(random, DType::kF32, 100, 6);
  const auto pairs = static_cast<size_t>(c.query_count * c.group);
  std::vector<float> output(pairs * static_cast<size_t>(c.value_dim)), log_sum_exp(pairs);
  const AttendKernels& kernels = AttendKernelsFor(GetParam());
  AttendLocalWith(kernels, c.Problem(), 0, output.data(), log_sum_exp.data());
  std::vector<double> once(static_cast<size_t>(c.group)), twice = once;
  const LocalUpstream upstream = {log_sum_exp.data(), c.output_gradients.data(), c.offsets.data()};
  AttendLocalBackwardWith(kernels, c.Problem(), upstream, {.scales = once.data()});
  AttendLocalBackwardWith(kernels, c.Problem(), upstream, {.scales = twice.data()});
  AttendLocalBackwardWith(kernels, c.Problem(), upstream, {.scales = twice.data()});
  for (size_t g = 0; g < once.size(); ++g) EXPECT_EQ(2 * once[g], twice[g]);
}

MNEME_INSTANTIATE_TARGETS(LocalBackwardTest);

}  // namespace
}  // namespace mneme
