// SPDX-License-Identifier: Apache-2.0
#include "base/row_array.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(RowArrayTest, ArraysThatGrowTogetherKeepTheirRows) {
  constexpr size_t kRowBytes = 200;
  constexpr int64_t kRows = 3000;
  std::vector<std::unique_ptr<RowArray>> arrays;
  for (int i = 0; i < 40; ++i) arrays.push_back(std::make_unique<RowArray>(kRowBytes));
  std::vector<char> row(kRowBytes);
  for (int64_t r = 0; r < kRows; ++r) {
    for (size_t i = 0; i < arrays.size(); ++i) {
      std::memset(row.data(), static_cast<int>(static_cast<size_t>(r) * 7 + i), kRowBytes);
      if (i % 2 == 0) {
        arrays[i]->Append(row.data(), 1);
      } else {
        std::memcpy(arrays[i]->Next(), row.data(), kRowBytes);
        arrays[i]->Publish();
      }
    }
  }
  size_t held = 0;
  for (size_t i = 0; i < arrays.size(); ++i) {
    for (int64_t r = 0; r < kRows; ++r) {
      const char expected = static_cast<char>(static_cast<size_t>(r) * 7 + i);
      ASSERT_EQ(arrays[i]->Row(r)[0], expected) << "array " << i << " row " << r;
      ASSERT_EQ(arrays[i]->Row(r)[kRowBytes - 1], expected) << "array " << i << " row " << r;
    }
    held += arrays[i]->MemoryBytes();
    if (i % 3 == 0) arrays[i].reset();
    if (i + 1 < arrays.size()) {
      ASSERT_EQ(arrays[i + 1]->Row(kRows - 1)[0], static_cast<char>((kRows - 1) * 7 + static_cast<int64_t>(i) + 1));
    }
  }
  const size_t written = 40 * kRows * kRowBytes;
  EXPECT_GE(held, written);
  EXPECT_LE(held, 2 * written) << "what is resident and not written stays less than what is written";
}

// Many rows at once, across the ends of arenas, then rows one by one.
TEST(RowArrayTest, AppendsOfAnySizeFollowOneAnother) {
  RowArray array(sizeof(int64_t));
  int64_t next = 0;
  for (const int64_t n : {255, 3, 1, 253, 700, 1, 5000, 1, 20, 1}) {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < n; ++i) rows.push_back(next++);
    array.Append(rows.data(), n);
    ASSERT_EQ(array.size(), next);
    for (int64_t row = 0; row < next; ++row) {
      int64_t value;
      std::memcpy(&value, array.Row(row), sizeof(value));
      ASSERT_EQ(value, row) << "of " << next;
    }
  }
}

}  // namespace
}  // namespace mneme
