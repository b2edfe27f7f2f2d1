// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/plan.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/attention/cuda/attend_case.h"

namespace mneme::cuda {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

alignas(16) const char kSomewhere[16] = {};

AttendProblem Good() {
  AttendProblem p;
  p.tokens = 4;
  p.batch = 2;
  p.q_heads = 8;
  p.kv_heads = 2;
  p.key_dim = 128;
  p.value_dim = 64;
  p.top_k = 32;
  p.query = kSomewhere;
  p.query_offsets = reinterpret_cast<const int64_t*>(kSomewhere);
  p.memories = reinterpret_cast<const MemoryRows* const*>(kSomewhere);
  p.local_keys = p.local_values = kSomewhere;
  p.local_offsets = p.query_offsets;
  p.output = const_cast<char*>(kSomewhere);
  return p;
}

TEST(CheckProblemTest, NamesWhatIsWrong) {
  EXPECT_EQ(CheckProblem(Good(), {}), "");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const struct {
    const char* starts;
    const char* has;
    std::function<void(AttendProblem&)> spoil;
  } cases[] = {
      {"tokens: ", "got -1", [](auto& p) { p.tokens = -1; }},
      {"tokens: ", "with so many heads", [](auto& p) { p.tokens = int64_t{1} << 40; }},
      {"batch: ", "got 0", [](auto& p) { p.batch = 0; }},
      {"kv_heads: ", "got 0", [](auto& p) { p.kv_heads = 0; }},
      {"q_heads: ", "multiple of kv_heads = 2, got 7", [](auto& p) { p.q_heads = 7; }},
      {"key_dim: ", "64, 128 or 256, got 96", [](auto& p) { p.key_dim = 96; }},
      {"value_dim: ", "64, 128 or 256, got 0", [](auto& p) { p.value_dim = 0; }},
      {"top_k: ", "0 to 256, got 257", [](auto& p) { p.top_k = 257; }},
      {"top_k: ", "got -1", [](auto& p) { p.top_k = -1; }},
      {"type: ", "got f32", [](auto& p) { p.type = DType::kF32; }},
      {"memory_type: ", "f16 or i8, got bf16", [](auto& p) { p.memory_type = DType::kBF16; }},
      {"output_type: ", "got i8", [](auto& p) { p.output_type = DType::kI8; }},
      {"query: ", "NULL", [](auto& p) { p.query = nullptr; }},
      {"query: ", "4 bytes", [](auto& p) { p.query = kSomewhere + 2; }},
      {"memory_query: ", "4 bytes", [](auto& p) { p.memory_query = kSomewhere + 2; }},
      {"query_offsets: ", "NULL", [](auto& p) { p.query_offsets = nullptr; }},
      {"memories: ", "NULL", [](auto& p) { p.memories = nullptr; }},
      {"output: ", "NULL", [](auto& p) { p.output = nullptr; }},
      {"local_keys: ", "NULL", [](auto& p) { p.local_keys = nullptr; }},
      {"local_values: ", "NULL", [](auto& p) { p.local_values = nullptr; }},
      {"local_offsets: ", "NULL", [](auto& p) { p.local_offsets = nullptr; }},
      {"local_keys: ", "16 bytes", [](auto& p) { p.local_keys = kSomewhere + 8; }},
      {"local_values: ", "16 bytes", [](auto& p) { p.local_values = kSomewhere + 8; }},
      {"local_key_row_stride: ", "got 12", [](auto& p) { p.local_key_row_stride = 12; }},
      {"local_value_head_stride: ", "got -4", [](auto& p) { p.local_value_head_stride = -4; }},
      {"local_mask: ", "got 9", [](auto& p) { p.local_mask = static_cast<LocalMaskKind>(9); }},
      {"local_window: ", "got 0", [](auto& p) { p.local_mask = LocalMaskKind::kSlidingWindow; }},
      {"positions: ", "NULL", [](auto& p) { p.decay = reinterpret_cast<const float*>(kSomewhere); }},
      {"soft_cap: ", "got -1", [](auto& p) { p.soft_cap = -1; }},
      {"soft_cap: ", "nan", [=](auto& p) { p.soft_cap = nan; }},
      {"decay_beyond: ", "got 0", [](auto& p) { p.decay_beyond = 0; }},
      {"fusion: ", "got 3", [](auto& p) { p.fusion = static_cast<Fusion>(3); }},
      {"gate: ", "NULL", [](auto& p) { p.fusion = Fusion::kGated; }},
  };
  for (const auto& c : cases) {
    AttendProblem p = Good();
    c.spoil(p);
    EXPECT_THAT(CheckProblem(p, {}), StartsWith(c.starts));
    EXPECT_THAT(CheckProblem(p, {}), HasSubstr(c.has));
  }
  AttendBounds bounds;
  bounds.queries = 0;
  EXPECT_THAT(CheckProblem(Good(), bounds), StartsWith("bounds.queries: "));
  bounds = {};
  bounds.memory_rows = int64_t{1} << 33;
  EXPECT_THAT(CheckProblem(Good(), bounds), StartsWith("bounds.memory_rows: "));
  bounds = {};
  bounds.local_rows = -1;
  EXPECT_THAT(CheckProblem(Good(), bounds), StartsWith("bounds.local_rows: "));
}

TEST(CheckProblemTest, NothingToDoNeedsNoArrays) {
  AttendProblem p = Good();
  p.tokens = 0;
  p.query = nullptr;
  p.output = nullptr;
  p.local_keys = p.local_values = nullptr;
  p.local_offsets = nullptr;
  p.top_k = 0;
  p.memories = nullptr;
  EXPECT_EQ(CheckProblem(p, {}), "");
}

TEST(PlanTest, PiecesCoverEveryRowOnceWhateverTheLength) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 300; ++trial) {
    AttendProblem p = Good();
    p.batch = 1 + static_cast<int32_t>(random() % 100);
    p.top_k = 1 + static_cast<int32_t>(random() % kMaxTopK);
    AttendBounds bounds;
    bounds.memory_rows = static_cast<int64_t>(random() % 200000);
    bounds.local_rows = static_cast<int64_t>(random() % 5000);
    bounds.queries = 1 + static_cast<int64_t>(random() % 20);
    bounds.memory_grows = random() % 4 == 0;
    const AttendPlan plan = PlanAttend(p, bounds, DeviceRoom{1 + static_cast<int64_t>(random() % 400)}, 8);
    ASSERT_GE(plan.ranges, 1);
    ASSERT_LE(plan.ranges, kMaxRanges);
    ASSERT_LE(plan.ranges * p.top_k, kMaxCandidates);
    ASSERT_EQ(plan.range_rows % 128, 0);
    ASSERT_GE(plan.splits, 1);
    ASSERT_LE(plan.splits, kMaxLocalSplits);
    ASSERT_GE(plan.capacity, p.top_k + 128) << "a step's rows fit beside the best";
    ASSERT_LE(plan.capacity, kMaxCapacity);
    for (const int64_t rows : {int64_t{0}, int64_t{1}, bounds.memory_rows / 2, bounds.memory_rows,
                               bounds.memory_rows + 1000, 3 * bounds.memory_rows}) {
      const int64_t begin = static_cast<int64_t>(random() % 50), end = begin + rows;
      const int64_t each = RangeRows(plan, rows);
      ASSERT_TRUE(each == plan.range_rows || bounds.memory_grows || rows > bounds.memory_rows);
      ASSERT_LE(plan.ranges * each, std::max(rows + plan.ranges * 128, plan.ranges * plan.range_rows))
          << "no long last";
      int64_t at = begin, used = 0;
      for (int64_t i = 0; i < plan.ranges; ++i) {
        const RowSlice slice = Slice(begin, end, i, plan.ranges, each);
        ASSERT_EQ(slice.first, at);
        at = slice.last;
        if (slice.first < slice.last) {
          ASSERT_EQ(used, i) << "the pieces that have rows come first";
          ++used;
        }
      }
      ASSERT_EQ(at, end);
      ASSERT_EQ(used, SlicesUsed(rows, plan.ranges, each));
    }
  }
}

// A graph that is captured once, while its memory grows from 0 to a million tokens.
TEST(PlanTest, AMemoryThatGrowsHasTheRangesOfALongOne) {
  AttendProblem p = Good();
  p.tokens = p.batch = 1;
  AttendBounds bounds;
  bounds.memory_rows = 1 << 20;
  const AttendPlan known = PlanAttend(p, bounds, DeviceRoom{264}, 8);
  bounds.memory_rows = 0;
  bounds.memory_grows = true;
  const AttendPlan plan = PlanAttend(p, bounds, DeviceRoom{264}, 8);
  EXPECT_EQ(plan.ranges, known.ranges);
  EXPECT_EQ(RangeRows(plan, 1 << 20), known.range_rows);
  EXPECT_EQ(RangeRows(plan, 0), 512) << "less is not worth a block";
  EXPECT_EQ(RangeRows(plan, 10000), 512);
}

TEST(PlanTest, NegativeRangesAreEmpty) {
  const RowSlice slice = Slice(10, 4, 0, 3, 128);
  EXPECT_GE(slice.first, slice.last);
  EXPECT_EQ(SlicesUsed(-6, 3, 128), 0);
}

TEST(PlanTest, OneSequenceFillsTheDeviceOnceAndManyInSmallParts) {
  AttendProblem p = Good();
  p.tokens = p.batch = 1;
  p.q_heads = 32;
  p.kv_heads = 8;
  AttendBounds bounds;
  bounds.memory_rows = 65536;
  bounds.local_rows = 512;
  const DeviceRoom room{264};
  const AttendPlan one = PlanAttend(p, bounds, room, 8);
  EXPECT_EQ(one.columns, kDecodeColumns);
  EXPECT_EQ(one.splits, 4);
  EXPECT_GE((one.ranges + one.splits) * 8, 240);
  EXPECT_LE((one.ranges + one.splits) * 8, 264) << "a second wave would begin when the first ends";
  p.tokens = p.batch = 64;
  EXPECT_EQ(PlanAttend(p, bounds, room, 8).ranges, 3);
  p.tokens = p.batch = 4096;
  EXPECT_EQ(PlanAttend(p, bounds, room, 8).ranges, 1);
}

TEST(PlanTest, PromptsTakeWiderTiles) {
  AttendProblem p = Good();
  AttendBounds bounds;
  bounds.memory_rows = 1000;
  bounds.queries = 2;  // two queries of four heads: eight columns
  EXPECT_EQ(PlanAttend(p, bounds, {}, 8).columns, kDecodeColumns);
  bounds.queries = 512;
  const AttendPlan plan = PlanAttend(p, bounds, {}, 8);
  EXPECT_EQ(plan.columns, kPrefillColumns);
  EXPECT_EQ(plan.column_tiles, 64);
  EXPECT_EQ(plan.splits, 1);
}

TEST(PlanTest, SharedMemoryFitsEveryDeviceThatIsCompiledFor) {
  for (const int32_t dim : {64, 128, 256}) {
    for (const int32_t top_k : {1, 64, 65, 256}) {
      for (const int64_t queries : {1, 512}) {
        AttendProblem p = Good();
        p.key_dim = dim;
        p.top_k = top_k;
        AttendBounds bounds;
        bounds.queries = queries;
        const AttendPlan plan = PlanAttend(p, bounds, {}, 8);
        EXPECT_GT(plan.search_shared_bytes, 0);
        EXPECT_LE(plan.search_shared_bytes, 163 * 1024) << "sm_80";
      }
    }
  }
}

TEST(PlanTest, TheWorkspaceHoldsItsParts) {
  AttendProblem p = Good();
  AttendBounds bounds;
  bounds.memory_rows = 100000;
  bounds.local_rows = 700;
  const AttendPlan plan = PlanAttend(p, bounds, DeviceRoom{100}, 8);
  const int64_t pairs = p.tokens * p.q_heads;
  EXPECT_GE(plan.local_outputs_at, 8 * pairs * plan.ranges * p.top_k);
  EXPECT_GE(plan.local_sums_at, plan.local_outputs_at + 4 * pairs * plan.splits * p.value_dim);
  EXPECT_GE(plan.workspace_bytes, plan.local_sums_at + 4 * pairs * plan.splits);
  EXPECT_EQ(plan.local_outputs_at % 256, 0);
  EXPECT_EQ(plan.local_sums_at % 256, 0);
}

}  // namespace
}  // namespace mneme::cuda
