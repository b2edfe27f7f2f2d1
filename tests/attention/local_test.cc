// SPDX-License-Identifier: Apache-2.0
#include "attention/local.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "attention/attend_kernels.h"
#include "attention/reference.h"
#include "attention/state.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/attention/local_case.h"

namespace mneme {
namespace {

using ::testing::Each;

int64_t RandomDim(TestRandom& random) {
  return random.OneOf<int64_t>({1, 3, 8, 16, 24, 63, 64, 64, 65, 80, 128, 129, 256});
}

LocalSizes RandomSizes(TestRandom& random, int64_t most_rows, int64_t most_queries) {
  return {.rows = random.OneOf<int64_t>({0, 1, 63, 64, 65, 128, 129, random.Between(0, most_rows)}),
          .key_dim = RandomDim(random),
          .value_dim = RandomDim(random),
          .group = random.Between(1, 8),
          .query_count = random.OneOf<int64_t>({1, 1, 2, random.Between(1, most_queries)})};
}

struct Case : LocalCase {
  Case(TestRandom& random, DType dtype, float deviation, float value_size, int64_t most_rows, int64_t most_queries)
      : LocalCase(random, dtype, RandomSizes(random, most_rows, most_queries), value_size) {
    for (int64_t g = 0; g < group; ++g) {
      scales.push_back(deviation / std::sqrt(static_cast<float>(key_dim)) * (random.Chance(0.1) ? -1.0f : 1.0f) *
                       static_cast<float>(1 + random.Between(0, 2)));
    }
  }

  // The local rows of a tensor, as they are after rounding.
  std::vector<std::vector<double>> LocalRows(const OwnedTensor& tensor) const {
    std::vector<std::vector<double>> local;
    for (int64_t j = 0; j < rows; ++j) local.push_back(tensor.Row(row_begin + j, head));
    return local;
  }

  // The reference in double of query i and head g, and the greatest sum of |products| of a logit.
  reference::State Expected(const std::vector<std::vector<double>>& local_keys,
                            const std::vector<std::vector<double>>& local_values, int64_t i, int64_t g,
                            double* greatest_logit) const {
    const float* query = queries.data() + (i * group + g) * key_dim;
    const std::vector<double> wide_query(query, query + key_dim);
    std::vector<double> logits;
    *greatest_logit = 0;
    for (int64_t j = 0; j < rows; ++j) {
      const std::vector<double>& key = local_keys[static_cast<size_t>(j)];
      const double scale = static_cast<double>(scales[static_cast<size_t>(g)]);
      const double score = scale * reference::Dot(wide_query, key);
      logits.push_back(reference::SoftCap(score, static_cast<double>(soft_cap)));
      double sum = 0;
      for (int64_t d = 0; d < key_dim; ++d) {
        sum += std::fabs(wide_query[static_cast<size_t>(d)] * key[static_cast<size_t>(d)]);
      }
      if (mask.Visible(first_query + i, j)) *greatest_logit = std::max(*greatest_logit, std::fabs(scale) * sum);
    }
    return reference::Softmax(logits, local_values, value_dim,
                              [&](int64_t j) { return mask.Visible(first_query + i, j); });
  }
};

struct Answer {
  std::vector<float> output, log_sum_exp;

  // The same bits, NaN included.
  bool Equals(const Answer& other) const {
    return output.size() == other.output.size() && log_sum_exp.size() == other.log_sum_exp.size() &&
           std::memcmp(output.data(), other.output.data(), output.size() * sizeof(float)) == 0 &&
           std::memcmp(log_sum_exp.data(), other.log_sum_exp.data(), log_sum_exp.size() * sizeof(float)) == 0;
  }
};

class LocalTest : public EachTarget {
 protected:
  Answer Attend(const LocalProblem& problem, int64_t block_queries = 0) {
    Answer answer;
    const auto rows = static_cast<size_t>(problem.query_count * problem.group);
    answer.output.assign(rows * static_cast<size_t>(problem.values.dim), 1e30f);
    answer.log_sum_exp.assign(rows, 1e30f);
    AttendLocalWith(AttendKernelsFor(GetParam()), problem, block_queries, answer.output.data(),
                    answer.log_sum_exp.data());
    return answer;
  }
};

TEST_P(LocalTest, AgreesWithTheReference) {
  TestRandom random(301);
  SCOPED_TRACE(random.seed());
  ErrorTable errors("local " + std::string(CpuTargetName(GetParam())));
  for (int trial = 0; trial < 2000; ++trial) {
    const DType dtype = std::vector<DType>{DType::kF32, DType::kF16, DType::kBF16}[static_cast<size_t>(trial % 3)];
    const float deviation = random.OneOf<float>({0.0f, 1.0f, 1.0f, 3.0f, 1e3f, 1e4f});
    const float value_size = random.OneOf<float>({1.0f, 1.0f, 1e-6f, 1e-40f});
    const Case c(random, dtype, deviation, value_size, 200, 6);
    const Answer answer = Attend(c.Problem());
    const std::vector<std::vector<double>> keys = c.LocalRows(c.keys), values = c.LocalRows(c.values);
    double largest = 0;
    for (const std::vector<double>& row : values) {
      for (const double x : row) largest = std::max(largest, std::fabs(x));
    }
    for (int64_t i = 0; i < c.query_count; ++i) {
      for (int64_t g = 0; g < c.group; ++g) {
        const auto row = static_cast<size_t>(i * c.group + g);
        double greatest_logit;
        const reference::State expected = c.Expected(keys, values, i, g, &greatest_logit);
        const float* output = answer.output.data() + row * static_cast<size_t>(c.value_dim);
        const float log_sum_exp = answer.log_sum_exp[row];
        if (expected.log_sum_exp == -std::numeric_limits<double>::infinity()) {
          ASSERT_EQ(log_sum_exp, kEmptyLogSumExp) << c.Describe();
          ASSERT_THAT(std::vector<float>(output, output + c.value_dim), Each(0.0f)) << c.Describe();
          continue;
        }
        // A logit of size s is known to s * 6e-8 at best, and so are the weights, relatively.
        const double allowance = 1 + greatest_logit / 4;
        const double lse_error = std::fabs(static_cast<double>(log_sum_exp) - expected.log_sum_exp) / allowance;
        ASSERT_LE(lse_error, 2e-6) << c.Describe() << " query " << i << " head " << g;
        const bool ordinary = greatest_logit < 30;
        const std::string name(DTypeName(dtype));
        if (ordinary) errors.Add(name + ", log-sum-exp, logits of ordinary size", lse_error * allowance);
        for (int64_t d = 0; d < c.value_dim; ++d) {
          const double distance =
              std::fabs(static_cast<double>(output[d]) - expected.output[static_cast<size_t>(d)]) / (largest + 1e-36);
          if (ordinary) errors.Add(name + ", output against the largest value, logits of ordinary size", distance);
          errors.Add(name + ", output, for each 1 + size of logit / 4", distance / allowance);
          ASSERT_LE(distance, 2e-6 * allowance) << c.Describe() << " query " << i << " head " << g << " element " << d;
        }
      }
    }
  }
}

TEST_P(LocalTest, ResultDoesNotDependOnHowQueriesAreTaken) {
  TestRandom random(302);
  SCOPED_TRACE(random.seed());
  for (int trial = 0; trial < 500; ++trial) {
    const DType dtype = std::vector<DType>{DType::kF32, DType::kF16, DType::kBF16}[static_cast<size_t>(trial % 3)];
    const Case c(random, dtype, 1.0f, 1.0f, 300, 70);
    const LocalProblem whole = c.Problem();
    const Answer expected = Attend(whole);
    for (const int64_t block : {1, 2, 7, 1000}) {
      ASSERT_TRUE(Attend(whole, block).Equals(expected)) << c.Describe() << " by blocks of " << block;
    }
    // Piece by piece, through first_query.
    const int64_t piece = random.Between(1, 5);
    Answer pieces;
    for (int64_t first = 0; first < c.query_count; first += piece) {
      LocalProblem part = whole;
      part.queries += first * c.group * c.key_dim;
      part.first_query += first;
      part.query_count = std::min(piece, c.query_count - first);
      const Answer answer = Attend(part);
      pieces.output.insert(pieces.output.end(), answer.output.begin(), answer.output.end());
      pieces.log_sum_exp.insert(pieces.log_sum_exp.end(), answer.log_sum_exp.begin(), answer.log_sum_exp.end());
    }
    ASSERT_TRUE(pieces.Equals(expected)) << c.Describe() << " in pieces of " << piece;
    // One head of the group alone.
    const int64_t head = random.Between(0, c.group - 1);
    for (int64_t i = 0; i < c.query_count; ++i) {
      LocalProblem part = whole;
      part.queries += (i * c.group + head) * c.key_dim;
      part.first_query += i;
      part.query_count = 1;
      part.group = 1;
      part.scales += head;
      const Answer answer = Attend(part);
      const auto row = static_cast<size_t>(i * c.group + head);
      const auto dim = static_cast<size_t>(c.value_dim);
      ASSERT_EQ(0, std::memcmp(answer.output.data(), expected.output.data() + row * dim, dim * sizeof(float)))
          << c.Describe();
      ASSERT_EQ(0, std::memcmp(answer.log_sum_exp.data(), &expected.log_sum_exp[row], sizeof(float)));
    }
  }
}

TEST_P(LocalTest, HiddenRowsMayHoldAnything) {
  TestRandom random(303);
  SCOPED_TRACE(random.seed());
  for (int trial = 0; trial < 300; ++trial) {
    Case c(random, trial % 2 == 0 ? DType::kF32 : DType::kF16, 1.0f, 1.0f, 200, 70);
    const Answer expected = Attend(c.Problem());
    for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      for (int64_t j = 0; j < c.rows; ++j) {
        bool hidden = true;
        for (int64_t i = 0; i < c.query_count; ++i) hidden &= !c.mask.Visible(c.first_query + i, j);
        if (!hidden) continue;
        c.keys.SetRow(c.row_begin + j, c.head, std::vector<float>(static_cast<size_t>(c.key_dim), poison));
        c.values.SetRow(c.row_begin + j, c.head, std::vector<float>(static_cast<size_t>(c.value_dim), poison));
      }
      ASSERT_TRUE(Attend(c.Problem()).Equals(expected)) << c.Describe();
    }
  }
}

// A row that one query sees must not affect another query that does not see it.
TEST_P(LocalTest, PoisonStaysWithTheQueriesThatSeeIt) {
  TestRandom random(304);
  OwnedTensor keys(random, DType::kF32, 70, 1, 64, [&] { return random.Normal(); });
  OwnedTensor values(random, DType::kF32, 70, 1, 64, [&] { return random.Normal(); });
  std::vector<float> queries(70 * 64), scales = {0.1f};
  for (float& x : queries) x = random.Normal();
  LocalProblem problem;
  problem.queries = queries.data();
  problem.query_count = 70;
  problem.keys = keys.view();
  problem.values = values.view();
  problem.row_count = 70;
  problem.scales = scales.data();
  const Answer clean = Attend(problem);
  keys.SetRow(40, 0, std::vector<float>(64, std::numeric_limits<float>::quiet_NaN()));
  values.SetRow(40, 0, std::vector<float>(64, std::numeric_limits<float>::quiet_NaN()));
  const Answer poisoned = Attend(problem);
  for (size_t i = 0; i < 70; ++i) {
    if (i < 40) {
      EXPECT_EQ(0, std::memcmp(&clean.output[i * 64], &poisoned.output[i * 64], 256)) << i;
      EXPECT_EQ(clean.log_sum_exp[i], poisoned.log_sum_exp[i]);
    } else {
      EXPECT_TRUE(std::isnan(poisoned.output[i * 64])) << i;
      EXPECT_TRUE(std::isnan(poisoned.log_sum_exp[i])) << i;
    }
  }
}

// Logits of -infinity have weight 0, in the first tile and in later ones; if there are no others, the state is empty.
TEST_P(LocalTest, LogitsOfMinusInfinity) {
  TestRandom random(305);
  OwnedTensor keys(random, DType::kF32, 130, 1, 8, [] { return 1.0f; });
  OwnedTensor values(random, DType::kF32, 130, 1, 8, [] { return 1.0f; });
  const std::vector<float> low(8, -std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < 130; ++j) {
    if (j != 100) keys.SetRow(j, 0, low);
    values.SetRow(j, 0, std::vector<float>(8, static_cast<float>(j)));
  }
  const std::vector<float> queries(8, 1.0f), scales = {0.5f};
  LocalProblem problem;
  problem.queries = queries.data();
  problem.query_count = 1;
  problem.keys = keys.view();
  problem.values = values.view();
  problem.row_count = 130;
  problem.scales = scales.data();
  problem.mask.kind = LocalMask::Kind::kNone;
  Answer answer = Attend(problem);
  EXPECT_THAT(answer.output, Each(100.0f));
  EXPECT_EQ(answer.log_sum_exp[0], 4.0f);
  keys.SetRow(100, 0, low);
  answer = Attend(problem);
  EXPECT_THAT(answer.output, Each(0.0f));
  EXPECT_EQ(answer.log_sum_exp[0], kEmptyLogSumExp);
}

TEST_P(LocalTest, NoRowsAndNoData) {
  const std::vector<float> queries(6, 1.0f), scales = {1.0f, 1.0f};
  LocalProblem problem;
  problem.queries = queries.data();
  problem.query_count = 1;
  problem.group = 2;
  problem.keys.dim = 3;
  problem.values.dim = 5;
  problem.scales = scales.data();
  const Answer answer = Attend(problem);
  EXPECT_THAT(answer.output, Each(0.0f));
  EXPECT_THAT(answer.log_sum_exp, Each(kEmptyLogSumExp));
  problem.query_count = 0;
  EXPECT_TRUE(Attend(problem).output.empty());
}

MNEME_INSTANTIATE_TARGETS(LocalTest);

TEST(LocalMaskTest, Visible) {
  LocalMask mask;
  mask.kind = LocalMask::Kind::kCausal;
  mask.offset = 3;
  EXPECT_TRUE(mask.Visible(2, 5));
  EXPECT_FALSE(mask.Visible(2, 6));
  mask.kind = LocalMask::Kind::kSlidingWindow;
  mask.window = 2;
  EXPECT_TRUE(mask.Visible(2, 5));
  EXPECT_TRUE(mask.Visible(2, 4));
  EXPECT_FALSE(mask.Visible(2, 3));
  EXPECT_FALSE(mask.Visible(2, 6));
  mask.window = std::numeric_limits<int64_t>::max();
  mask.offset = std::numeric_limits<int64_t>::max();
  EXPECT_TRUE(mask.Visible(2, 6));  // no sum overflows
  EXPECT_FALSE(mask.Visible(2, 2));
  mask.kind = LocalMask::Kind::kNone;
  EXPECT_TRUE(mask.Visible(0, 1000));
  const uint8_t bits[] = {0, 0, 0x04, 0x80};
  mask.kind = LocalMask::Kind::kBits;
  mask.bits = bits;
  mask.bits_stride = 2;
  EXPECT_TRUE(mask.Visible(1, 2));
  EXPECT_TRUE(mask.Visible(1, 15));
  EXPECT_FALSE(mask.Visible(1, 3));
  EXPECT_FALSE(mask.Visible(0, 2));
}

TEST(LocalDispatchTest, TheFaceRunsTheBestTarget) {
  TestRandom random(306);
  const Case c(random, DType::kF16, 1.0f, 1.0f, 200, 20);
  const auto rows = static_cast<size_t>(c.query_count * c.group);
  Answer a{std::vector<float>(rows * static_cast<size_t>(c.value_dim)), std::vector<float>(rows)}, b = a;
  AttendLocal(c.Problem(), a.output.data(), a.log_sum_exp.data());
  AttendLocalWith(AttendKernelsFor(BestCpuTarget()), c.Problem(), 0, b.output.data(), b.log_sum_exp.data());
  EXPECT_TRUE(a.Equals(b));
}

}  // namespace
}  // namespace mneme
