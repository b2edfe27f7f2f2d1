// SPDX-License-Identifier: Apache-2.0
#include "tests/attention/cuda/emulator.h"

#include <set>
#include <stdexcept>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

// The emulator must find mistakes.
namespace mneme::cuda {
namespace {

using ::testing::HasSubstr;

std::string MessageOf(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

// Each thread writes its own word and reads that of the thread `distance` on.
bool ReadsTheNeighbour(uint32_t seed, int distance, const std::function<void(EmulatedBlock<2>&)>& barrier) {
  bool right = true;
  RunGrid<2>(1, 1, 1, 64 * 4, seed, [&](EmulatedBlock<2>& block) {
    auto* const words = reinterpret_cast<uint32_t*>(block.shared());
    words[block.thread()] = static_cast<uint32_t>(block.thread());
    barrier(block);
    const int other = block.thread() ^ distance;
    if (words[other] != static_cast<uint32_t>(other)) right = false;
  });
  return right;
}

TEST(EmulatorTest, ABarrierOrdersTheBlockAndItsLackIsSeen) {
  int unsynced_warps = 0, unsynced_lanes = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    EXPECT_TRUE(ReadsTheNeighbour(seed, 32, [](EmulatedBlock<2>& block) { block.Sync(); }));
    EXPECT_TRUE(ReadsTheNeighbour(seed, 1, [](EmulatedBlock<2>& block) { block.WarpSync(); }));
    unsynced_warps += !ReadsTheNeighbour(seed, 32, [](EmulatedBlock<2>& block) { block.WarpSync(); });
    unsynced_lanes += !ReadsTheNeighbour(seed, 1, [](EmulatedBlock<2>&) {});
  }
  EXPECT_GE(unsynced_warps, 5);
  EXPECT_GE(unsynced_lanes, 5);
}

TEST(EmulatorTest, EachRunStartsWithOtherSharedMemory) {
  std::set<uint32_t> seen;
  RunGrid<1>(5, 1, 1, 4, 7, [&](EmulatedBlock<1>& block) {
    if (block.thread() == 0) seen.insert(*reinterpret_cast<uint32_t*>(block.shared()));
  });
  EXPECT_EQ(seen.size(), 5u);
}

TEST(EmulatorTest, EveryBlockRunsOnce) {
  std::multiset<int64_t> seen;
  RunGrid<1>(3, 4, 5, 0, 1, [&](EmulatedBlock<1>& block) {
    if (block.thread() == 31) seen.insert(block.x() + 10 * block.y() + 100 * block.z());
  });
  EXPECT_EQ(seen.size(), 60u);
  EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(), 60u);
  EXPECT_EQ(*seen.rbegin(), 432);
}

TEST(EmulatorTest, ExchangesOfAWarp) {
  RunGrid<2>(1, 1, 1, 0, 3, [](EmulatedBlock<2>& block) {
    EXPECT_EQ(block.WarpSum(static_cast<uint32_t>(block.lane())), 496u);
    EXPECT_EQ(block.ShuffleXor(static_cast<float>(block.lane()), 5), static_cast<float>(block.lane() ^ 5));
    EXPECT_EQ(block.ShuffleXor(uint64_t{1} << 40 | static_cast<uint64_t>(block.lane()), 16),
              uint64_t{1} << 40 | static_cast<uint64_t>(block.lane() ^ 16));
    EXPECT_TRUE(block.SyncOr(block.thread() == 40));
    EXPECT_FALSE(block.SyncOr(false));
  });
}

TEST(EmulatorTest, AProductOfSixteenKeysAndEightQueries) {
  // Keys k[r][d] = r + d / 16, queries q[d][c] = (d == c): the product is k's first eight columns.
  const auto f16 = [](float low, float high) {
    return static_cast<uint32_t>(F32ToF16(low)) | static_cast<uint32_t>(F32ToF16(high)) << 16;
  };
  RunGrid<1>(1, 1, 1, 0, 3, [&](EmulatedBlock<1>& block) {
    const int group = block.lane() / 4, member = block.lane() % 4;
    const auto key = [](int r, int d) { return static_cast<float>(r) + static_cast<float>(d) / 16.0f; };
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i % 2), d = 2 * member + 8 * (i / 2);
      a[i] = f16(key(row, d), key(row, d + 1));
    }
    for (int i = 0; i < 2; ++i) {
      const int d = 2 * member + 8 * i;
      b[i] = f16(d == group ? 1.0f : 0.0f, d + 1 == group ? 1.0f : 0.0f);
    }
    float c[4] = {100, 100, 100, 100};
    block.Multiply<Product::kF16>(c, a, b);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(c[i], 100.0f + key(group + 8 * (i / 2), 2 * member + i % 2));
    }
  });
}

TEST(EmulatorTest, FindsWhatIsWrong) {
  EXPECT_THAT(MessageOf([] {
                RunGrid<2>(1, 1, 1, 0, 1, [](EmulatedBlock<2>& block) {
                  if (block.thread() != 33) block.Sync();
                });
              }),
              HasSubstr("stuck"));
  EXPECT_THAT(MessageOf([] {
                RunGrid<1>(1, 1, 1, 0, 1, [](EmulatedBlock<1>& block) {
                  if (block.lane() < 16) block.WarpSync();
                });
              }),
              HasSubstr("stuck"));
  EXPECT_THAT(MessageOf([] {
                RunGrid<1>(1, 1, 1, 0, 1, [](EmulatedBlock<1>& block) {
                  block.lane() < 16 ? block.WarpSync() : static_cast<void>(block.WarpSum(1));
                });
              }),
              HasSubstr("different exchanges"));
  EXPECT_THAT(MessageOf([] {
                RunGrid<2>(1, 1, 1, 0, 1, [](EmulatedBlock<2>& block) {
                  block.thread() < 3 ? block.Sync() : static_cast<void>(block.SyncOr(true));
                });
              }),
              HasSubstr("different barriers"));
  EXPECT_THAT(MessageOf([] {
                RunGrid<1>(1, 1, 1, 40, 1, [](EmulatedBlock<1>& block) {
                  if (block.thread() == 0) block.shared()[44] = 1;
                });
              }),
              HasSubstr("past shared memory"));
  EXPECT_THAT(
      MessageOf([] { RunGrid<1>(1, 1, 1, 64, 1, [](EmulatedBlock<1>& block) { block.Load16(block.shared() + 8); }); }),
      HasSubstr("not aligned"));
}

}  // namespace
}  // namespace mneme::cuda
