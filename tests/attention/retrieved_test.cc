// SPDX-License-Identifier: Apache-2.0
#include "attention/retrieved.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "attention/attend_kernels.h"
#include "attention/reference.h"
#include "attention/state.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/attention/random_tensors.h"

namespace mneme {
namespace {

using ::testing::Each;

const DType kAllTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8};

// Encoded rows, each in memory of its own size.
struct Rows {
  std::vector<std::unique_ptr<char[]>> bytes;
  std::vector<const void*> pointers;
  std::vector<std::vector<double>> values;  // as they are after encoding

  void Add(const std::vector<float>& row, DType dtype) {
    const auto dim = static_cast<int64_t>(row.size());
    bytes.push_back(std::make_unique<char[]>(RowBytes(dtype, dim)));
    pointers.push_back(bytes.back().get());
    EncodeRow(row.data(), dtype, bytes.back().get(), dim);
    std::vector<float> decoded(row.size());
    DecodeRow(dtype, bytes.back().get(), decoded.data(), dim);
    values.emplace_back(decoded.begin(), decoded.end());
  }
};

class RetrievedTest : public EachTarget {
 protected:
  float Attend(const std::vector<float>& logits, const Rows& rows, DType dtype, std::vector<float>& output) {
    return AttendRetrievedWith(AttendKernelsFor(GetParam()), logits.data(), rows.pointers.data(),
                               static_cast<int64_t>(logits.size()), dtype, static_cast<int64_t>(output.size()),
                               output.data());
  }
};

TEST_P(RetrievedTest, AgreesWithTheReference) {
  TestRandom random(201);
  SCOPED_TRACE(random.seed());
  ErrorTable errors("retrieved " + std::string(CpuTargetName(GetParam())) + ", against the largest value");
  for (int trial = 0; trial < 3000; ++trial) {
    const DType dtype = kAllTypes[trial % 4];
    const int64_t dim = random.OneOf<int64_t>({1, 3, 7, 16, 63, 64, 65, 96, 128, 129, 192, 256});
    const int64_t count = random.OneOf<int64_t>({0, 1, 2, 31, 32, 33, 64, 65, random.Between(0, 300)});
    const float deviation = random.OneOf<float>({0.0f, 0.5f, 3.0f, 50.0f, 1e4f});
    const float size = random.OneOf<float>({1.0f, 1.0f, 1e-5f, 1e-7f, 1e-40f, 1e3f});
    std::vector<float> logits(static_cast<size_t>(count));
    Rows rows;
    double largest = 0;
    for (float& logit : logits) {
      logit = random.Normal(deviation);
      if (random.Chance(0.02)) logit = -std::numeric_limits<float>::infinity();
      std::vector<float> row(static_cast<size_t>(dim));
      for (float& x : row) x = random.Normal(size);
      rows.Add(row, dtype);
      for (const double x : rows.values.back()) largest = std::max(largest, std::fabs(x));
    }
    const reference::State expected =
        reference::Softmax({logits.begin(), logits.end()}, rows.values, dim, [](int64_t) { return true; });
    std::vector<float> output(static_cast<size_t>(dim), 1e30f);
    const float log_sum_exp = Attend(logits, rows, dtype, output);
    if (expected.log_sum_exp == -std::numeric_limits<double>::infinity()) {
      ASSERT_EQ(log_sum_exp, kEmptyLogSumExp);
      ASSERT_THAT(output, Each(0.0f));
      continue;
    }
    ASSERT_NEAR(log_sum_exp, expected.log_sum_exp, 3e-7 * (1 + std::fabs(expected.log_sum_exp)));
    for (size_t d = 0; d < output.size(); ++d) {
      // Below the smallest normal number an f32 has an absolute step.
      const double error = std::fabs(static_cast<double>(output[d]) - expected.output[d]) / (largest + 1e-36);
      errors.Add(std::string(DTypeName(dtype)), error);
      ASSERT_LE(error, 2e-6) << DTypeName(dtype) << " dim " << dim << " count " << count << " deviation " << deviation;
    }
  }
}

TEST_P(RetrievedTest, OneRowIsReturnedAsItIs) {
  TestRandom random(202);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t dim : {1, 64, 65}) {
      std::vector<float> row(static_cast<size_t>(dim)), output(row.size());
      for (float& x : row) x = random.Normal();
      Rows rows;
      rows.Add(row, dtype);
      for (const float logit : {0.0f, -1e4f, 1e4f}) {
        EXPECT_EQ(Attend({logit}, rows, dtype, output), logit);
        for (size_t d = 0; d < row.size(); ++d) EXPECT_EQ(static_cast<double>(output[d]), rows.values[0][d]);
      }
    }
  }
}

TEST_P(RetrievedTest, EqualLogitsGiveTheMean) {
  Rows rows;
  for (int i = 0; i < 100; ++i) rows.Add({static_cast<float>(i), 1.0f}, DType::kF32);
  std::vector<float> output(2);
  const float log_sum_exp = Attend(std::vector<float>(100, 3.5f), rows, DType::kF32, output);
  EXPECT_FLOAT_EQ(output[0], 49.5f);
  EXPECT_FLOAT_EQ(output[1], 1.0f);
  EXPECT_NEAR(log_sum_exp, 3.5 + std::log(100.0), 1e-6);
}

TEST_P(RetrievedTest, AllMinusInfinityIsEmptyAndNaNIsNotHidden) {
  Rows rows;
  rows.Add({1.0f}, DType::kF32);
  rows.Add({2.0f}, DType::kF32);
  std::vector<float> output = {7};
  const float none = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(Attend({none, none}, rows, DType::kF32, output), kEmptyLogSumExp);
  EXPECT_EQ(output[0], 0.0f);
  EXPECT_EQ(Attend({none, 1.0f}, rows, DType::kF32, output), 1.0f);
  EXPECT_EQ(output[0], 2.0f);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(Attend({none, nan}, rows, DType::kF32, output)));
  EXPECT_TRUE(std::isnan(output[0]));
  EXPECT_TRUE(std::isnan(Attend({1.0f, nan}, rows, DType::kF32, output)));
  EXPECT_TRUE(std::isnan(output[0]));
}

TEST_P(RetrievedTest, AddRowsAgreesWithTheReference) {
  TestRandom random(205);
  SCOPED_TRACE(random.seed());
  for (int trial = 0; trial < 500; ++trial) {
    const DType dtype = kAllTypes[trial % 4];
    const int64_t dim = random.OneOf<int64_t>({1, 3, 7, 16, 63, 64, 65, 96, 128, 129, 256});
    const int64_t count = random.OneOf<int64_t>({0, 1, 2, 63, 64, 65, random.Between(0, 200)});
    Rows rows;
    std::vector<float> weights, sum(static_cast<size_t>(dim));
    for (float& x : sum) x = random.Normal();
    std::vector<double> expected(sum.begin(), sum.end()), size(sum.size(), 1);
    for (int64_t j = 0; j < count; ++j) {
      std::vector<float> row(static_cast<size_t>(dim));
      for (float& x : row) x = random.Normal();
      rows.Add(row, dtype);
      weights.push_back(random.Normal());
      for (size_t i = 0; i < expected.size(); ++i) {
        const double term = static_cast<double>(weights.back()) * rows.values.back()[i];
        expected[i] += term;
        size[i] += std::fabs(term);
      }
    }
    AttendKernelsFor(GetParam()).add_rows(weights.data(), rows.pointers.data(), count, dtype, dim, sum.data());
    for (size_t i = 0; i < sum.size(); ++i) {
      ASSERT_NEAR(static_cast<double>(sum[i]), expected[i], 1e-6 * size[i]) << "element " << i << " of " << dim;
    }
  }
}

MNEME_INSTANTIATE_TARGETS(RetrievedTest);

TEST(RetrievedDispatchTest, TheFaceRunsTheBestTarget) {
  Rows rows;
  rows.Add({1.0f, 2.0f, 3.0f}, DType::kF16);
  rows.Add({-1.0f, 0.5f, 0.25f}, DType::kF16);
  const float logits[] = {0.3f, 0.7f};
  std::vector<float> a(3), b(3);
  EXPECT_EQ(AttendRetrieved(logits, rows.pointers.data(), 2, DType::kF16, 3, a.data()),
            AttendRetrievedWith(AttendKernelsFor(BestCpuTarget()), logits, rows.pointers.data(), 2, DType::kF16, 3,
                                b.data()));
  EXPECT_EQ(a, b);
}

class ExpTest : public EachTarget {};

TEST_P(ExpTest, StaysWithinTwoUlp) {
  constexpr float kLow = -87.33f, kHigh = 88.0f;
  double greatest = 0;
  std::vector<float> x, result;
  for (float at = kLow; at < kHigh; at = std::nextafter(at + 1.7e-5f, kHigh)) x.push_back(at);
  for (int exponent = -40; exponent < 7; ++exponent) {
    for (const float mantissa : {1.0f, 1.37f, 1.999999f}) {
      for (const float sign : {-1.0f, 1.0f}) {
        const float at = sign * std::ldexp(mantissa, exponent);
        if (at > kLow && at < kHigh) x.push_back(at);
      }
    }
  }
  x.resize(x.size() / 16 * 16);
  result.resize(x.size());
  AttendKernelsFor(GetParam()).exp(x.data(), static_cast<int64_t>(x.size()), result.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(static_cast<double>(x[i]));
    const double ulp = std::ldexp(1.0, std::ilogb(expected) - 23);
    greatest = std::max(greatest, std::fabs(static_cast<double>(result[i]) - expected) / ulp);
  }
  std::printf("[ GREATEST ] exp %s: %.2f ulp over %zu numbers\n", std::string(CpuTargetName(GetParam())).c_str(),
              greatest, x.size());
  EXPECT_LE(greatest, 2.0);
}

TEST_P(ExpTest, Limits) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> x = {0.0f, -0.0f, 1e-45f, -1e-45f, -infinity, -3.4e38f, -1e4f, -87.34f,
                                nan,  -nan,  88.0f,  -87.33f, 1,         -1,       -104,  -1000};
  std::vector<float> result(16);
  AttendKernelsFor(GetParam()).exp(x.data(), 16, result.data());
  for (const size_t i : {0, 1, 2, 3}) EXPECT_EQ(result[i], 1.0f) << x[i];
  for (const size_t i : {4, 5, 6, 7, 14, 15}) EXPECT_EQ(result[i], 0.0f) << x[i];
  for (const size_t i : {8, 9}) EXPECT_TRUE(std::isnan(result[i])) << x[i];
  EXPECT_TRUE(std::isfinite(result[10]));
  EXPECT_GT(result[11], 0.0f);
}

MNEME_INSTANTIATE_TARGETS(ExpTest);

}  // namespace
}  // namespace mneme
