// SPDX-License-Identifier: Apache-2.0
// How rows are copied to a device, kept there and freed.

#include <algorithm>

#include "tests/capi/device/emulated.h"

namespace mneme {
namespace {

class MirrorTest : public DeviceTest {};

// A prompt that retrieves many rows a head needs several launches.
TEST_F(MirrorTest, ServesAPromptInSeveralLaunches) {
  OpenWith(300);
  TwinCall call;
  PromptCall(call, "m", 300);
  ExpectSame(call);
  EXPECT_EQ(device_.attends(), 2) << "a launch has 2^18 candidates, which are 256 of these queries";
  EXPECT_EQ(Stats().device_searched_sequences, 1);
}

// Eviction frees room on the device, too.
TEST_F(MirrorTest, ABoundedMemoryStaysBoundedOnTheDevice) {
  OpenStores();
  Create("m", Options(DType::kF16, 100, 4));
  Append("m", 90);
  int64_t greatest = 0;
  for (int i = 0; i < 60; ++i) {
    Append("m", 40);
    TwinCall call;
    PlainCall(call, {"m"}, DType::kF16);
    ExpectSame(call);
    ASSERT_FALSE(HasFailure()) << "round " << i;
    greatest = std::max(greatest, Stats().device_bytes);
  }
  // All 2,490 tokens of 768 bytes in layer 3 would take 1.9 MB. The bound is 100 tokens, and a block has room for at
  // most five quarters of them and 1,024 more.
  EXPECT_LT(greatest, int64_t{1250} * 768 * 2 + (int64_t{1} << 20));
  EXPECT_EQ(Stats().device_fallback_sequences, 0);
}

TEST_F(MirrorTest, ALargerBlockGetsTheRowsOfTheOldOne) {
  OpenStores();
  int64_t copied = 0;
  for (const DType stored : {DType::kF16, DType::kI8}) {
    SCOPED_TRACE(DTypeName(stored));
    const std::string name(DTypeName(stored));
    Create(name, Options(stored, 0, 5));
    Append(name, 60);
    TwinCall call;
    PlainCall(call, {name}, DType::kF16);
    call.args.default_top_k = 60;
    ExpectSame(call);
    Append(name, 1100);  // the block had room for 1,024 more
    ExpectSame(call);
    // The first 60 rows are retrieved, too, and were copied on the device.
    call.memory_end = {60};
    ExpectSame(call);
    copied += 1160;
    EXPECT_EQ(Stats().device_copied_rows, copied);
  }
  EXPECT_EQ(Stats().device_searched_sequences, 6);
}

TEST_F(MirrorTest, DecodingAllocatesNothingAndCopiesEachRowOnce) {
  OpenWith(50);
  const auto step = [&] {
    Append("m", 1);
    TwinCall call;
    PlainCall(call, {"m"}, DType::kF16);
    ExpectSame(call);
  };
  step();
  const int64_t allocations = device_.allocations();
  const int64_t copied = Stats().device_copied_rows;
  for (int i = 0; i < 40; ++i) step();
  EXPECT_EQ(device_.allocations(), allocations);
  EXPECT_EQ(Stats().device_copied_rows - copied, 40) << "no call has read layer 7";
  EXPECT_EQ(Stats().device_searched_sequences, 41);
}

// After a truncation new rows overwrite rows that a snapshot still sees.
TEST_F(MirrorTest, ASnapshotFromBeforeATruncationKeepsItsRows) {
  OpenWith(100);
  TwinCall call;
  PlainCall(call, {"m"}, DType::kF16);
  ExpectSame(call);
  TakeSnapshots("m");
  Both("m", [](mneme_memory* memory) { return mneme_memory_truncate(memory, 60); });
  Append("m", 40);
  ExpectSame(call);
  call.snapshots = true;
  ExpectSame(call);
  const mneme_store_stats stats = Stats();
  EXPECT_EQ(stats.device_searched_sequences, 2);
  EXPECT_EQ(stats.device_fallback_sequences, 1);
  EXPECT_EQ(stats.device_copied_rows, 140) << "the first 60 rows are copied once";
}

}  // namespace
}  // namespace mneme
