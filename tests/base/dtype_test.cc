// SPDX-License-Identifier: Apache-2.0
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
  // Every f16, the numbers halfway between neighbours and next to these, infinities, NaN and numbers that are too
  // small.
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
  EXPECT_EQ(F32ToBF16(1.0f + 0x1p-8f), 0x3f80);             // a tie, to even
  EXPECT_EQ(F32ToBF16(1.0f + 3 * 0x1p-8f), 0x3f82);         // a tie, to even
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

// Rows near and far apart, backwards, of all lengths; by the best kernels and by the plain conversions.
TEST(DTypeTest, EncodeFiniteIsConversionAndCheckInOne) {
  const std::vector<DType> dtypes = {DType::kF32, DType::kF16, DType::kBF16};
  constexpr size_t kRows = 3, kMost = 300;
  for (const size_t dim : {1, 7, 8, 15, 16, 17, 31, 40, 64, 130, 257, 300}) {
    for (const DType from : dtypes) {
      for (const DType to : dtypes) {
        for (const bool backwards : {false, true}) {
          const size_t apart = (kMost + 5) * DTypeSize(from);
          std::vector<char> source(kRows * apart), expected(kRows * RowBytes(to, static_cast<int64_t>(dim)));
          std::vector<float> values(dim), wide(dim);
          for (size_t row = 0; row < kRows; ++row) {
            for (size_t i = 0; i < dim; ++i) {
              values[i] = (i % 2 == 0 ? 1.0f : -1.0f) * (static_cast<float>(row * dim + i) + 1 / 3.0f);
            }
            values[dim / 2] = 65504.0f;  // f16's greatest
            char* const at = source.data() + row * apart;
            ConvertFromF32(values.data(), from, at, dim);
            ConvertToF32(from, at, wide.data(), dim);
            const size_t place = backwards ? kRows - 1 - row : row;
            ConvertFromF32(wide.data(), to, expected.data() + place * dim * DTypeSize(to), dim);
          }
          const char* const first = source.data() + (backwards ? (kRows - 1) * apart : 0);
          const auto stride = static_cast<int64_t>(backwards ? -1 : 1) * static_cast<int64_t>(apart);
          std::vector<char> encoded(expected.size() + 1, 'x');
          const auto encode = [&] {
            return EncodeFinite(from, first, stride, kRows, static_cast<int64_t>(dim), to, encoded.data());
          };
          const bool fits = from != DType::kBF16 || to != DType::kF16;  // 65504 is 65536 there
          ASSERT_EQ(encode(), fits) << "dim " << dim << ", " << DTypeName(from) << " to " << DTypeName(to);
          EXPECT_EQ(encoded.back(), 'x');
          if (!fits) continue;
          encoded.pop_back();
          EXPECT_EQ(encoded, expected) << "dim " << dim << ", " << DTypeName(from) << " to " << DTypeName(to);
          encoded.push_back('x');
          // Each place may be the one that is not finite, or that becomes so.
          for (const size_t row : {size_t{0}, kRows - 1}) {
            for (size_t i = 0; i < dim; ++i) {
              char* const at = source.data() + row * apart + i * DTypeSize(from);
              const std::vector<char> before(at, at + DTypeSize(from));
              for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                                      -std::numeric_limits<float>::infinity(), -65520.0f, 3.4e38f}) {
                float kept;
                ConvertFromF32(&bad, from, at, 1);
                ConvertToF32(from, at, &wide[0], 1);
                uint32_t stored = 0;
                ConvertFromF32(&wide[0], to, &stored, 1);
                ConvertToF32(to, &stored, &kept, 1);
                ASSERT_EQ(encode(), std::isfinite(kept)) << bad << " at " << i << " of " << dim << " in row " << row
                                                         << ", " << DTypeName(from) << " to " << DTypeName(to);
              }
              std::copy(before.begin(), before.end(), at);
            }
          }
        }
      }
    }
  }
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
