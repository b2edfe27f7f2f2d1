// SPDX-License-Identifier: Apache-2.0
#include "index/key_rows.h"

#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace mneme {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8};

std::vector<char> RandomRows(DType dtype, int64_t rows, int64_t dim, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const size_t row_bytes = RowBytes(dtype, dim);
  std::vector<char> encoded(static_cast<size_t>(rows) * row_bytes);
  std::vector<float> row(static_cast<size_t>(dim));
  for (int64_t r = 0; r < rows; ++r) {
    for (float& x : row) x = normal(random);
    EncodeRow(row.data(), dtype, encoded.data() + static_cast<size_t>(r) * row_bytes, dim);
  }
  return encoded;
}

void ExpectHolds(const KeyRows& keys, const std::vector<char>& encoded, int64_t rows) {
  const size_t row_bytes = RowBytes(keys.dtype(), keys.dim());
  std::vector<float> actual(static_cast<size_t>(keys.dim())), expected(actual.size());
  ASSERT_EQ(keys.size(), rows);
  for (int64_t r = 0; r < rows; ++r) {
    const char* source = encoded.data() + static_cast<size_t>(r) * row_bytes;
    ASSERT_EQ(std::memcmp(keys.Row(r), source, row_bytes), 0) << "row " << r;
    keys.Decode(r, actual.data());
    DecodeRow(keys.dtype(), source, expected.data(), keys.dim());
    ASSERT_EQ(std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(float)), 0) << "row " << r;
  }
}

TEST(KeyRowsTest, RowsComeBackBitForBit) {
  for (const DType dtype : kTypes) {
    for (const int64_t dim : {1, 7, 64, 129}) {
      for (const int64_t reserve : {0, 1, 700, 3000}) {
        constexpr int64_t kRows = 1500;
        const std::vector<char> encoded = RandomRows(dtype, kRows, dim, 17);
        KeyRows keys(dtype, dim);
        keys.Reserve(reserve);
        std::mt19937 random(3);
        for (int64_t row = 0; row < kRows;) {
          const int64_t n =
              std::min<int64_t>(1 + static_cast<int64_t>(random() % (row % 2 == 0 ? 3 : 90)), kRows - row);
          keys.Append(encoded.data() + static_cast<size_t>(row) * RowBytes(dtype, dim), n);
          row += n;
        }
        SCOPED_TRACE(testing::Message() << DTypeName(dtype) << " dim " << dim << " reserve " << reserve);
        ExpectHolds(keys, encoded, kRows);
      }
    }
  }
}

TEST(KeyRowsTest, SpecialBitsSurvive) {
  // Signalling NaNs, infinities, negative zero: bytes, not numbers.
  const uint16_t bits[] = {0x7c01, 0xfc00, 0x8000, 0x7fff, 0x0001, 0xffff, 0x0000};
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    KeyRows keys(dtype, 7);
    keys.Append(bits, 1);
    EXPECT_EQ(std::memcmp(bits, keys.Row(0), sizeof(bits)), 0);
  }
}

TEST(KeyRowsTest, RowsNeverMoveAndArenasDouble) {
  KeyRows keys(DType::kF32, 8);
  const std::vector<char> encoded = RandomRows(DType::kF32, 5000, 8, 1);
  keys.Append(encoded.data(), 1);
  int64_t contiguous = 0;
  const void* first = keys.Rows(0, &contiguous);
  EXPECT_EQ(contiguous, 4) << "one row takes two cache lines";
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
  keys.Append(encoded.data() + RowBytes(DType::kF32, 8), 4999);
  EXPECT_EQ(keys.Rows(0, &contiguous), first);
  int64_t row = 0;
  for (const int64_t expected : {4, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096}) {
    keys.Rows(row, &contiguous);
    EXPECT_EQ(contiguous, expected) << "row " << row;
    keys.Rows(row + 3, &contiguous);
    EXPECT_EQ(contiguous, expected - 3) << "row " << row;
    row += expected;
  }
  ExpectHolds(keys, encoded, 5000);
}

TEST(KeyRowsTest, FewRowsTakeLittleMemory) {
  for (const int64_t rows : {1, 3, 20, 100, 255, 256}) {
    KeyRows keys(DType::kF16, 64);
    const std::vector<char> encoded = RandomRows(DType::kF16, rows, 64, 1);
    keys.Append(encoded.data(), rows);
    EXPECT_GE(keys.MemoryBytes(), encoded.size());
    EXPECT_LE(keys.MemoryBytes(), 2 * encoded.size() + 256) << rows << " rows";
  }
}

TEST(KeyRowsTest, ReservedRowsLieInOnePieceAndCostNothingYet) {
  KeyRows keys(DType::kF16, 128);
  keys.Reserve(1 << 20);  // 256 MiB
  EXPECT_LT(keys.MemoryBytes(), size_t{1} << 20);
  const std::vector<char> encoded = RandomRows(DType::kF16, 100, 128, 1);
  keys.Append(encoded.data(), 100);
  int64_t contiguous = 0;
  const void* rows = keys.Rows(0, &contiguous);
  EXPECT_EQ(contiguous, 1 << 20);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(rows) % (2 << 20), 0u);
  EXPECT_LE(keys.MemoryBytes(), size_t{3} << 20);
  ExpectHolds(keys, encoded, 100);
}

TEST(KeyRowsTest, MemoryFollowsWhatIsWritten) {
  KeyRows keys(DType::kF16, 64);
  const std::vector<char> encoded = RandomRows(DType::kF16, 1000, 64, 1);
  for (int i = 0; i < 100; ++i) keys.Append(encoded.data(), 1000);
  const size_t written = 100'000 * 128;
  EXPECT_GE(keys.MemoryBytes(), written);
  EXPECT_LE(keys.MemoryBytes(), written + (size_t{4} << 20));
}

TEST(KeyRowsTest, ReadersSeeWholeRowsWhileOneAppends) {
  constexpr int64_t kRows = 6000;
  constexpr int64_t kDim = 9;
  const std::vector<char> encoded = RandomRows(DType::kBF16, kRows, kDim, 23);
  const size_t row_bytes = RowBytes(DType::kBF16, kDim);
  KeyRows keys(DType::kBF16, kDim);
  std::atomic<int> bad{0};
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 3; ++reader) {
    readers.emplace_back([&, reader] {
      std::mt19937 random(static_cast<uint32_t>(reader));
      int64_t size = 0;
      while (size < kRows) {
        size = keys.size();
        if (size == 0) continue;
        static_cast<void>(keys.MemoryBytes());
        for (const int64_t r : {size - 1, static_cast<int64_t>(random()) % size}) {
          if (std::memcmp(keys.Row(r), encoded.data() + static_cast<size_t>(r) * row_bytes, row_bytes) != 0) ++bad;
        }
      }
    });
  }
  for (int64_t row = 0; row < kRows; ++row) keys.Append(encoded.data() + static_cast<size_t>(row) * row_bytes, 1);
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(bad, 0);
}

}  // namespace
}  // namespace mneme
