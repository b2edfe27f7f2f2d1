#include "base/dtype.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(DTypeTest, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = F16ToF32(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(value))));
    } else {
      ASSERT_EQ(F32ToF16(value), half) << "bits " << bits;
    }
  }
}

// The nearest f16 by search over all of them, ties to the even one: slow and plainly right.
TEST(DTypeTest, F16RoundsToNearestEven) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> exponent(-27.0f, 17.0f);
  for (int trial = 0; trial < 200; ++trial) {
    const float value = std::exp2(exponent(random));
    uint16_t best = 0;
    double best_error = std::numeric_limits<double>::infinity();
    for (uint32_t bits = 0; bits <= 0x7c00; ++bits) {
      // Infinity stands where the next finite value would be.
      const double candidate = bits == 0x7c00 ? 65536.0 : F16ToF32(static_cast<uint16_t>(bits));
      const double error = std::fabs(candidate - static_cast<double>(value));
      if (error < best_error || (error == best_error && bits % 2 == 0)) {
        best = static_cast<uint16_t>(bits);
        best_error = error;
      }
    }
    ASSERT_EQ(F32ToF16(value), best) << value;
    ASSERT_EQ(F32ToF16(-value), best | 0x8000) << -value;
  }
  EXPECT_EQ(F32ToF16(65519.99f), 0x7bff);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00);
}

// Many at once go by other instructions, where the CPU has them: the same numbers.
TEST(DTypeTest, ManyF16AreConvertedAsEachIs) {
  std::vector<uint16_t> halves(0x10000);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> wide(halves.size());
  ConvertToF32(DType::kF16, halves.data(), wide.data(), halves.size());
  for (size_t i = 0; i < halves.size(); ++i) {
    const float expected = F16ToF32(halves[i]);
    ASSERT_TRUE(std::isnan(expected) ? std::isnan(wide[i]) : std::memcmp(&wide[i], &expected, 4) == 0) << i;
    ASSERT_EQ(std::signbit(wide[i]), std::signbit(expected)) << i;
  }
  // Every f16, what is halfway between neighbours, and next to that; infinities, NaN and what is too small.
  std::mt19937 random(5);
  std::vector<float> values;
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const float value = F16ToF32(static_cast<uint16_t>(i)), next = F16ToF32(static_cast<uint16_t>(i + 1));
    const float middle = value / 2 + next / 2;
    values.insert(values.end(), {value, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 2 * middle)});
    const auto any = static_cast<uint32_t>(random());
    values.push_back(0);
    std::memcpy(&values.back(), &any, sizeof(any));
  }
  for (const size_t n : {size_t{1}, size_t{7}, size_t{8}, size_t{13}, values.size()}) {
    std::vector<uint16_t> narrow(n, 0xabcd);
    ConvertFromF32(values.data() + values.size() - n, DType::kF16, narrow.data(), n);
    for (size_t i = 0; i < n; ++i) {
      const float value = values[values.size() - n + i];
      const uint16_t expected = F32ToF16(value);
      ASSERT_TRUE(std::isnan(value) ? std::isnan(F16ToF32(narrow[i])) : narrow[i] == expected) << value;
      ASSERT_EQ(narrow[i] >> 15, expected >> 15) << value;
    }
  }
}

TEST(DTypeTest, BF16RoundsToNearestEven) {
  EXPECT_EQ(F32ToBF16(1.0f), 0x3f80);
  EXPECT_EQ(F32ToBF16(1.0f + 0x1p-8f), 0x3f80);            // a tie, to even
  EXPECT_EQ(F32ToBF16(1.0f + 3 * 0x1p-8f), 0x3f82);        // a tie, to even
  EXPECT_EQ(F32ToBF16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);  // just above
  EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isinf(BF16ToF32(F32ToBF16(std::numeric_limits<float>::max()))));
}

TEST(DTypeTest, EncodedRowsKeepTheirPrecision) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    for (const int64_t dim : {1, 7, 64, 129}) {
      std::vector<float> row(static_cast<size_t>(dim)), back(row.size());
      float largest = 0;
      for (float& x : row) {
        x = normal(random);
        largest = std::max(largest, std::fabs(x));
      }
      std::vector<char> bytes(RowBytes(dtype, dim));
      EncodeRow(row.data(), dtype, bytes.data(), dim);
      DecodeRow(dtype, bytes.data(), back.data(), dim);
      const float bound = dtype == DType::kF32    ? 0.0f
                          : dtype == DType::kF16  ? largest * 0x1p-11f
                          : dtype == DType::kBF16 ? largest * 0x1p-8f
                                                  : largest / 127.0f * 0.5001f;
      for (size_t i = 0; i < row.size(); ++i) {
        EXPECT_LE(std::fabs(row[i] - back[i]), bound) << DTypeName(dtype) << " dim " << dim;
      }
    }
  }
}

TEST(DTypeTest, ZeroRowOfI8StaysZero) {
  const std::vector<float> zero(16, 0.0f);
  std::vector<char> bytes(RowBytes(DType::kI8, 16), 'x');
  std::vector<float> back(16, 1.0f);
  EncodeRow(zero.data(), DType::kI8, bytes.data(), 16);
  DecodeRow(DType::kI8, bytes.data(), back.data(), 16);
  EXPECT_EQ(back, zero);
}

TEST(DTypeTest, AllFiniteFindsOneBadElement) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      std::vector<float> values(37, 2.0f);
      std::vector<char> bytes(values.size() * DTypeSize(dtype));
      ConvertFromF32(values.data(), dtype, bytes.data(), values.size());
      EXPECT_TRUE(AllFinite(dtype, bytes.data(), values.size()));
      values[31] = bad;
      ConvertFromF32(values.data(), dtype, bytes.data(), values.size());
      EXPECT_FALSE(AllFinite(dtype, bytes.data(), values.size()));
    }
  }
}

}  // namespace
}  // namespace mneme
