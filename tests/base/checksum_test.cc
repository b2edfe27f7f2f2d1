// SPDX-License-Identifier: Apache-2.0
#include "base/checksum.h"

#include <string>

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(ChecksumTest, EveryFlippedBitIsSeen) {
  std::string data(300, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7);
  const uint32_t sound = Checksum32(data.data(), data.size());
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    data[bit / 8] = static_cast<char>(data[bit / 8] ^ 1 << bit % 8);
    ASSERT_NE(Checksum32(data.data(), data.size()), sound) << "bit " << bit;
    data[bit / 8] = static_cast<char>(data[bit / 8] ^ 1 << bit % 8);
  }
  EXPECT_EQ(Checksum32(data.data(), data.size()), sound);
}

TEST(ChecksumTest, TheSeedTiesAValueToItsPlace) {
  EXPECT_NE(Checksum32("row", 3, 1), Checksum32("row", 3, 2));
}

// The number is part of the format: a library that changed it would make every store unreadable.
TEST(ChecksumTest, ValueIsPinned) {
  const uint32_t empty = Checksum32("", 0);
  EXPECT_EQ(empty, 0x2d06800538d394c2ull >> 32 ^ (0x2d06800538d394c2ull & 0xffffffffu));
}

}  // namespace
}  // namespace mneme
