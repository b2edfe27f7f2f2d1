// SPDX-License-Identifier: Apache-2.0
// The CPU serves what a device does not support, has no room for or fails at. The device budget is never exceeded.

#include "tests/capi/device/emulated.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FallbackTest : public DeviceTest {
 protected:
  void Create(const std::string& name, DType stored = DType::kF16, const char* index = nullptr) {
    mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
    options.stored_dtype = static_cast<int32_t>(stored) + MNEME_DTYPE_F32;
    options.segment_tokens = 256;
    options.index = index;
    DeviceTest::Create(name, options);
  }
};

TEST_F(FallbackTest, TheCpuServesWhatTheKernelsDoNotSupport) {
  OpenStores();
  Create("f16");
  Create("bf16", DType::kBF16);
  Create("f32", DType::kF32);
  Create("flat", DType::kF16, "flat");
  for (const char* name : {"f16", "bf16", "f32", "flat"}) Append(name, 70);
  struct Row {
    const char* what;
    const char* memory;
    DType query;
    void (*spoil)(TwinCall&);
  };
  const Row rows[] = {
      {"f32 queries", "f16", DType::kF32, [](TwinCall&) {}},
      {"queries of another type than the rows", "bf16", DType::kF16, [](TwinCall&) {}},
      {"f32 rows", "f32", DType::kF16, [](TwinCall&) {}},
      {"an index of its own", "flat", DType::kF16, [](TwinCall&) {}},
      {"a rotated query", "f16", DType::kF16,
       [](TwinCall& call) { call.args.position_policy = MNEME_POSITION_FIXED_DISTANCE; }},
      {"a normalised query", "f16", DType::kF16, [](TwinCall& call) { call.args.normalise_query = 1; }},
      {"more than 256 rows", "f16", DType::kF16, [](TwinCall& call) { call.args.default_top_k = 257; }},
  };
  int64_t fell_back = 0;
  for (const Row& row : rows) {
    SCOPED_TRACE(row.what);
    TwinCall call;
    PlainCall(call, {row.memory}, row.query);
    row.spoil(call);
    const TwinAnswer device = Attend(call, 0), cpu = Attend(call, 1);
    ASSERT_EQ(device.status, MNEME_OK) << device.error;
    EXPECT_EQ(device.output, cpu.output) << "the CPU gives the same bits";
    EXPECT_EQ(device.found, cpu.found);
    EXPECT_EQ(Stats().device_fallback_sequences, ++fell_back);
  }
  EXPECT_EQ(device_.attends(), 0);
  EXPECT_EQ(Stats().device_searched_sequences, 0);
  EXPECT_EQ(Stats(1).device_fallback_sequences, 0) << "a store without a device counts no fallback";
  TwinCall call;
  PlainCall(call, {"f16"}, DType::kF16);
  ExpectSame(call);
  EXPECT_EQ(Stats().device_searched_sequences, 1);
}

TEST_F(FallbackTest, DeviceAndCpuMayServeOneBatch) {
  OpenStores();
  Create("f16");
  Create("f32", DType::kF32);
  Append("f16", 50);
  Append("f32", 50);
  TwinCall call;
  PlainCall(call, {"f32", "f16", "", "f16"}, DType::kF16);
  ExpectSame(call);
  EXPECT_EQ(Stats().device_searched_sequences, 2);
  EXPECT_EQ(Stats().device_fallback_sequences, 1);
}

TEST_F(FallbackTest, TheCpuServesWhatHasNoRoomInTheBudget) {
  // The budget has room for layer 3 of one memory, some 1,100 rows of 768 bytes, but not of two.
  constexpr int64_t kBudget = int64_t{1} << 20;
  OpenStores(kBudget);
  Create("first");
  Create("second");
  for (const char* name : {"first", "second"}) Append(name, 60);
  for (int i = 0; i < 3; ++i) {
    for (const char* name : {"first", "second"}) {
      TwinCall call;
      PlainCall(call, {name}, DType::kF16);
      ExpectSame(call);
      ASSERT_LE(Stats().device_bytes, kBudget);
    }
  }
  EXPECT_EQ(device_.Finish(), "");
  EXPECT_LE(device_.bytes_held(), kBudget);
  EXPECT_EQ(Stats().device_searched_sequences, 3);
  EXPECT_EQ(Stats().device_fallback_sequences, 3);
  // Closing a memory frees its room.
  Close("first");
  TwinCall call;
  PlainCall(call, {"second"}, DType::kF16);
  ExpectSame(call);
  EXPECT_EQ(Stats().device_searched_sequences, 4);
  // A memory that outgrows the budget falls back to the CPU.
  for (int i = 0; i < 12; ++i) {
    Append("second", 100);
    PlainCall(call, {"second"}, DType::kF16);
    ExpectSame(call);
    ASSERT_LE(Stats().device_bytes, kBudget);
  }
  EXPECT_GT(Stats().device_fallback_sequences, 3);
  EXPECT_THAT(log_, IsEmpty()) << "a full budget is not a failure";
}

TEST_F(FallbackTest, ABudgetTooSmallForAnyRowLeavesAllToTheCpu) {
  OpenStores(1000);
  Create("m");
  Append("m", 20);
  TwinCall call;
  PlainCall(call, {"m"}, DType::kF16);
  ExpectSame(call);
  EXPECT_EQ(Stats().device_fallback_sequences, 1);
  EXPECT_LE(Stats().device_bytes, 1000);
}

TEST_F(FallbackTest, ACallWithoutRoomLeavesTheRowsOnTheDevice) {
  OpenStores(int64_t{1} << 20);
  Create("m");
  Append("m", 60);
  TwinCall small, large;
  PlainCall(small, {"m"}, DType::kF16);
  ExpectSame(small);
  EXPECT_EQ(Stats().device_searched_sequences, 1);
  // The candidates of 100 queries, 4 heads and 256 rows take 800 KB. Calls have an eighth of the budget.
  PromptCall(large, "m", 100);
  ExpectSame(large);
  EXPECT_EQ(Stats().device_fallback_sequences, 1);
  ExpectSame(small);
  EXPECT_EQ(Stats().device_searched_sequences, 2);
  EXPECT_EQ(Stats().device_copied_rows, 60) << "each row once";
  EXPECT_THAT(log_, IsEmpty());
}

// For every call of the device that fails: the result is right, and the device serves the next call.
TEST_F(FallbackTest, TheCpuServesACallWhoseDeviceFails) {
  int64_t failing = 0;
  // After the first 12 calls every third one is enough: many are alike, such as the 32 events of the staging ring.
  for (bool failed = true; failed; failing += failing < 12 ? 1 : 3) {
    SCOPED_TRACE("call " + std::to_string(failing) + " of the device fails");
    log_.clear();
    OpenStores();  // no rows are on the device yet
    Create("m");
    Append("m", 30);
    device_.FailCall(failing);
    const int64_t calls = device_.calls();
    for (int i = 0; i < 3; ++i) {
      TwinCall call;
      PlainCall(call, {"m"}, DType::kF16);
      ExpectSame(call);
      Append("m", i == 1 ? 1040 : 1);  // 1,040 rows need a larger block
    }
    Both("m", [](mneme_memory* memory) { return mneme_memory_truncate(memory, 50); });
    Append("m", 100);
    TwinCall call;
    PlainCall(call, {"m"}, DType::kF16);
    ExpectSame(call);
    failed = device_.calls() - calls > failing;
    device_.FailCall(-1);
    if (failed) {
      EXPECT_THAT(log_, ElementsAre(HasSubstr("made to fail; the CPU answers instead")));
    }
    const int64_t attended = Stats().device_searched_sequences;
    ExpectSame(call);
    EXPECT_EQ(Stats().device_searched_sequences, attended + 1)
        << "a failure must not keep the next call from the device";
    Close("m");
    for (mneme_store* const store : stores_) ASSERT_OK(mneme_memory_drop(store, "m"));
    CloseStores();
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_GT(failing, 30);
}

TEST_F(FallbackTest, WithoutADeviceTheLogSaysSoAndTheCpuServesAll) {
  device_.SetPresent(false);
  OpenStores();
  EXPECT_THAT(log_, ElementsAre("device_budget_bytes: there is no CUDA device; memories stay with the CPU"));
  Create("m");
  Append("m", 20);
  TwinCall call;
  PlainCall(call, {"m"}, DType::kF16);
  ExpectSame(call);
  EXPECT_EQ(Stats().device_searched_sequences + Stats().device_fallback_sequences, 0);
  device_.SetPresent(true);
}

TEST_F(FallbackTest, WrongDeviceOptionsAreNamed) {
  mneme_store* store = nullptr;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.device_budget_bytes = -1;
  ExpectRefused(mneme_store_open(folders_[0].store().c_str(), &options, &store), MNEME_STATUS_INVALID_ARGUMENT,
                "options.device_budget_bytes");
  options.device_budget_bytes = 1 << 20;
  for (const int32_t ordinal : {-1, 1}) {
    options.device_ordinal = ordinal;
    ExpectRefused(mneme_store_open(folders_[0].store().c_str(), &options, &store), MNEME_STATUS_INVALID_ARGUMENT,
                  "options.device_ordinal");
  }
  EXPECT_EQ(store, nullptr);
}

}  // namespace
}  // namespace mneme
