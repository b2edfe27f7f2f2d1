// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/append-inl.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "attention/cuda/rows_layout.h"
#include "base/dtype.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/attention/cuda/emulated_append.h"

namespace mneme::cuda {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// The rows of one memory in host memory, appended to by the emulated kernel.
struct HostRows {
  std::vector<uint8_t> keys, values;
  std::vector<float> key_scales, value_scales;
  MemoryRows rows;

  HostRows(int32_t heads, int64_t capacity, int32_t dim, DType type)
      : keys(static_cast<size_t>(heads * capacity * dim * ElementBytes(type)), 0x5A),
        values(keys),
        key_scales(static_cast<size_t>(heads * capacity), -1.0f),
        value_scales(key_scales) {
    rows.keys = keys.data();
    rows.values = values.data();
    rows.key_scales = key_scales.data();
    rows.value_scales = value_scales.data();
    rows.capacity = capacity;
  }
};

TEST(CudaAppendTest, EncodesAsTheHostDoesAndWritesNothingElse) {
  std::mt19937 random(21);
  for (int trial = 0; trial < 60; ++trial) {
    const DType type = std::vector<DType>{DType::kF16, DType::kBF16, DType::kI8}[trial % 3];
    const DType source_type = std::vector<DType>{DType::kF32, DType::kF16, DType::kBF16}[trial / 3 % 3];
    const int32_t dim = std::vector<int32_t>{64, 128, 256}[random() % 3];
    const int32_t heads = 1 + static_cast<int32_t>(random() % 3);
    const auto tokens = static_cast<int64_t>(1 + random() % 9), before = static_cast<int64_t>(random() % 5);
    HostRows memory(heads, before + tokens + 2, dim, type);
    memory.rows.end = before;
    AppendArgs args;
    args.head_stride = dim + 4;
    args.row_stride = heads * args.head_stride + 3;
    std::vector<uint8_t> source(static_cast<size_t>(tokens * args.row_stride * ElementBytes(source_type)));
    for (int64_t i = 0; i < tokens * args.row_stride; ++i) {
      float x = std::normal_distribution<float>(0, trial % 5 == 0 ? 1e-6f : 2.0f)(random);
      if (random() % 50 == 0) x = 0;
      StoreElement(source_type, source.data(), i, trial % 7 == 0 ? 0.0f : x);
    }
    args.source = source.data();
    args.source_type = source_type;
    args.heads = heads;
    args.dim = dim;
    args.tokens = args.all_tokens = tokens;
    args.type = type;
    args.values = trial % 2 == 1;
    args.rows = &memory.rows;
    EmulatedAppend(args, static_cast<uint32_t>(trial));

    const std::vector<uint8_t>& data = args.values ? memory.values : memory.keys;
    const std::vector<float>& scales = args.values ? memory.value_scales : memory.key_scales;
    for (const uint8_t byte : args.values ? memory.keys : memory.values) ASSERT_EQ(byte, 0x5A);
    const auto row_bytes = static_cast<size_t>(dim * ElementBytes(type));
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t r = 0; r < memory.rows.capacity; ++r) {
        const auto row = static_cast<size_t>(h * memory.rows.capacity + r);
        if (r < before || r >= before + tokens) {
          for (size_t i = 0; i < row_bytes; ++i) ASSERT_EQ(data[row * row_bytes + i], 0x5A);
          ASSERT_EQ(scales[row], -1.0f);
          continue;
        }
        std::vector<float> decoded;
        for (int64_t d = 0; d < dim; ++d) {
          decoded.push_back(
              LoadElement(source_type, source.data(), (r - before) * args.row_stride + h * args.head_stride + d));
        }
        std::vector<uint8_t> expected(RowBytes(static_cast<DType>(type), dim));
        EncodeRow(decoded.data(), static_cast<DType>(type), expected.data(), dim);
        ASSERT_EQ(std::memcmp(expected.data(), data.data() + row * row_bytes, row_bytes), 0) << "row " << r;
        if (type == DType::kI8) {
          ASSERT_EQ(std::memcmp(expected.data() + row_bytes, &scales[row], 4), 0);
        }
      }
    }
  }
}

TEST(CudaAppendTest, WritesAllTokensOrNoneAndAdvancesLikewise) {
  HostRows memory(1, 10, 64, DType::kF16);
  memory.rows.end = 7;
  const std::vector<float> source(4 * 64, 1.0f);
  AppendArgs args;
  args.source = source.data();
  args.row_stride = args.head_stride = args.dim = 64;
  args.heads = 1;
  args.tokens = 2;  // the first piece of an append of four
  args.all_tokens = 4;
  args.rows = &memory.rows;
  EmulatedAppend(args, 1);
  for (const uint8_t byte : memory.keys) ASSERT_EQ(byte, 0x5A);
  AdvanceEnd(&memory.rows, 4);
  EXPECT_EQ(memory.rows.end, 7);
  args.all_tokens = 3;
  args.offset = 1;
  EmulatedAppend(args, 1);
  AdvanceEnd(&memory.rows, 3);
  EXPECT_EQ(memory.rows.end, 10);
  EXPECT_EQ(memory.keys[7 * 128], 0x5A) << "the piece begins one row on";
  EXPECT_EQ(memory.keys[8 * 128 + 1], 0x3C);
  EXPECT_EQ(memory.keys[9 * 128 + 1], 0x3C);
}

TEST(DeviceBudgetTest, GivesWhatThereIs) {
  DeviceBudget budget(100);
  EXPECT_TRUE(budget.Take(60));
  EXPECT_FALSE(budget.Take(41));
  EXPECT_TRUE(budget.Take(40));
  EXPECT_EQ(budget.used(), 100);
  budget.Give(60);
  EXPECT_FALSE(budget.Take(INT64_MAX));
  EXPECT_TRUE(budget.Take(60));
}

TEST(RowsLayoutTest, PartsDoNotOverlapAndAreAligned) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kI8}) {
    RowsShape shape{3, 64, 256, type, 1001};
    ASSERT_EQ(CheckRowsShape(shape), "");
    const RowsLayout at = LayoutOf(shape);
    const int64_t rows = 3 * 1001, each = ElementBytes(type), scales = type == DType::kI8 ? 4 * rows : 0;
    const int64_t parts[][2] = {{at.keys, rows * 64 * each},
                                {at.values, rows * 256 * each},
                                {at.key_scales, scales},
                                {at.value_scales, scales},
                                {at.staging, kStagingBytes},
                                {at.rows, sizeof(MemoryRows)},
                                {at.bytes, 0}};
    for (size_t i = 0; i + 1 < std::size(parts); ++i) {
      EXPECT_EQ(parts[i][0] % 256, 0);
      EXPECT_GE(parts[i + 1][0], parts[i][0] + parts[i][1]);
    }
    EXPECT_EQ(DeviceRowsBytes(shape), at.bytes);
  }
  // One token of the greatest shape passes through the staging memory.
  RowsShape wide{65535, 256, 256, DType::kF16, 1};
  EXPECT_GE(LayoutOf(wide).rows - LayoutOf(wide).staging, int64_t{65535} * 256 * 4);
}

TEST(RowsLayoutTest, NamesWhatIsWrong) {
  const RowsShape good{2, 64, 128, DType::kI8, 100};
  const auto shape_with = [&](const std::function<void(RowsShape&)>& spoil) {
    RowsShape shape = good;
    spoil(shape);
    return CheckRowsShape(shape);
  };
  EXPECT_THAT(shape_with([](auto& s) { s.kv_heads = 0; }), StartsWith("shape.kv_heads: expected 1 to 65535, got 0"));
  EXPECT_THAT(shape_with([](auto& s) { s.key_dim = 65; }), StartsWith("shape.key_dim: "));
  EXPECT_THAT(shape_with([](auto& s) { s.value_dim = 0; }), StartsWith("shape.value_dim: "));
  EXPECT_THAT(shape_with([](auto& s) { s.type = DType::kF32; }), StartsWith("shape.type: "));
  EXPECT_THAT(shape_with([](auto& s) { s.capacity = int64_t{1} << 32; }), StartsWith("shape.capacity: "));

  const float data[1] = {};
  const RowsToAppend device{data, DType::kF32, true, -7, 0};
  const RowsToAppend host{data, DType::kBF16, false, 128, 128};
  EXPECT_EQ(CheckAppend(good, 10, 90, device, host, false), "");
  EXPECT_EQ(CheckAppend(good, 10, 0, {}, {}, false), "");
  EXPECT_THAT(CheckAppend(good, 10, 91, device, host, false), HasSubstr("at most 90, the room that is left, got 91"));
  EXPECT_THAT(CheckAppend(good, 10, -1, device, host, false), StartsWith("tokens: "));
  const auto append_with = [&](const std::function<void(RowsToAppend&)>& spoil) {
    RowsToAppend values = host;
    spoil(values);
    return CheckAppend(good, 0, 1, device, values, false);
  };
  EXPECT_THAT(append_with([](auto& v) { v.data = nullptr; }), StartsWith("values.data: "));
  EXPECT_THAT(append_with([](auto& v) { v.type = DType::kI8; }), StartsWith("values.type: "));
  EXPECT_THAT(append_with([](auto& v) { v.row_stride = 127; }), HasSubstr("values.row_stride: expected at least 128"));
  EXPECT_THAT(append_with([](auto& v) { v.head_stride = 0; }), StartsWith("values.head_stride: "));
}

// When a graph is captured, the number of rows at its replay is not known.
TEST(RowsLayoutTest, ACapturedAppendIsHeldToTheWholeRoomAndToDeviceMemory) {
  const RowsShape shape{1, 64, 64, DType::kF16, 100};
  const float data[1] = {};
  const RowsToAppend device{data, DType::kF16, true, 64, 64};
  const RowsToAppend host{data, DType::kF16, false, 64, 64};
  EXPECT_EQ(CheckAppend(shape, 100, 100, device, device, true), "");
  EXPECT_THAT(CheckAppend(shape, 0, 101, device, device, true), HasSubstr("at most 100, the room there is, got 101"));
  EXPECT_THAT(CheckAppend(shape, 0, 1, host, device, true), StartsWith("keys.on_device: expected device memory"));
  EXPECT_THAT(CheckAppend(shape, 0, 1, device, host, true), StartsWith("values.on_device: expected device memory"));
  EXPECT_EQ(CheckAppend(shape, 0, 1, host, host, false), "");
}

}  // namespace
}  // namespace mneme::cuda
