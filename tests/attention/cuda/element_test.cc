// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/element.h"

#include <cmath>
#include <cstring>
#include <random>

#include "base/dtype.h"
#include "gtest/gtest.h"

namespace mneme::cuda {
namespace {

TEST(ElementTest, WidensEvery16BitNumberAsBaseDoes) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float expected = mneme::F16ToF32(half);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(F16ToF32(half))) << bits;
    } else {
      EXPECT_EQ(BitsOf(F16ToF32(half)), BitsOf(expected)) << bits;
    }
    EXPECT_EQ(BitsOf(BF16ToF32(half)), BitsOf(mneme::BF16ToF32(half))) << bits;
  }
}

TEST(ElementTest, RoundsAsBaseDoes) {
  std::mt19937 random(2);
  const auto check = [](float value) {
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(value))));
      EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(value))));
      return;
    }
    EXPECT_EQ(F32ToF16(value), mneme::F32ToF16(value)) << value;
    EXPECT_EQ(F32ToBF16(value), mneme::F32ToBF16(value)) << value;
  };
  for (int i = 0; i < 500000; ++i) check(FloatOf(static_cast<uint32_t>(random())));
  // Halfway between two f16 numbers, and beside it; the whole range, subnormals and overflow included.
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const float low = F16ToF32(static_cast<uint16_t>(bits));
    const float high = bits == 0x7BFF ? 65536.0f : F16ToF32(static_cast<uint16_t>(bits + 1));
    const float middle = (low + high) / 2;
    for (const float value : {low, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      check(value);
      check(-value);
    }
  }
}

TEST(ElementTest, UnpacksEveryByte) {
  for (int first = -128; first < 128; first += 16) {
    int8_t bytes[16];
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<int8_t>(first + i);
    Vec16 loaded;
    std::memcpy(&loaded, bytes, sizeof(loaded));
    uint32_t pairs[8];
    I8Rows::Unpack(loaded, pairs);
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(F16ToF32(static_cast<uint16_t>(pairs[i / 2] >> (16 * (i % 2)))), static_cast<float>(bytes[i]));
    }
  }
}

}  // namespace
}  // namespace mneme::cuda
