// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/select-inl.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/attention/cuda/emulator.h"

namespace mneme::cuda {
namespace {

// Distinct keys: of random logits, of few different ones, of one alone.
std::vector<uint64_t> RandomKeys(std::mt19937& random, size_t n, int sort) {
  std::vector<uint32_t> indices(n + 100);
  std::iota(indices.begin(), indices.end(), static_cast<uint32_t>(random() % 1000));
  std::shuffle(indices.begin(), indices.end(), random);
  std::vector<uint64_t> keys;
  for (size_t i = 0; i < n; ++i) {
    const float logit = sort == 0   ? std::normal_distribution<float>(0, 3)(random)
                        : sort == 1 ? static_cast<float>(random() % 3) - 1.0f
                                    : 2.5f;
    keys.push_back(RankKey(logit, indices[i]));
  }
  return keys;
}

TEST(SelectTest, KeepBestKeepsTheBest) {
  std::mt19937 random(11);
  for (int trial = 0; trial < 150; ++trial) {
    const uint32_t n = 2 + static_cast<uint32_t>(random() % (kMaxCapacity - 1));
    const uint32_t k = 1 + static_cast<uint32_t>(random() % (n - 1));
    const std::vector<uint64_t> keys = RandomKeys(random, n, trial % 3);
    std::vector<uint64_t> expected = keys;
    std::sort(expected.begin(), expected.end(), std::greater<>());
    expected.resize(k);
    struct Shared {
      uint64_t keys[kMaxCapacity];
      uint32_t count;
    };
    std::vector<uint64_t> kept;
    RunGrid<1>(1, 1, 1, sizeof(Shared), static_cast<uint32_t>(trial), [&](EmulatedBlock<1>& block) {
      auto& shared = *reinterpret_cast<Shared*>(block.shared());
      for (uint32_t i = static_cast<uint32_t>(block.lane()); i < n; i += kLanes) shared.keys[i] = keys[i];
      if (block.lane() == 0) shared.count = n;
      block.WarpSync();
      const uint64_t least = KeepBest(block, shared.keys, &shared.count, k);
      EXPECT_EQ(least, expected.back());
      EXPECT_EQ(shared.count, k);
      if (block.lane() == 7) kept.assign(shared.keys, shared.keys + k);
    });
    std::sort(kept.begin(), kept.end(), std::greater<>());
    EXPECT_EQ(kept, expected) << "n " << n << " k " << k;
  }
}

TEST(SelectTest, SortedBestSortsTheBest) {
  std::mt19937 random(12);
  for (int trial = 0; trial < 60; ++trial) {
    const auto n = static_cast<uint32_t>(random() % 900);
    const uint32_t k = trial == 0 ? 0 : static_cast<uint32_t>(random() % (kMaxTopK + 1));
    std::vector<uint64_t> keys = RandomKeys(random, n, trial % 3);
    std::vector<uint64_t> expected = keys;
    std::sort(expected.begin(), expected.end(), std::greater<>());
    expected.resize(std::min<size_t>(k, n));
    // Ranges with fewer rows than top_k leave holes.
    for (uint32_t i = static_cast<uint32_t>(random() % 50); i > 0; --i) {
      keys.insert(keys.begin() + static_cast<int64_t>(random() % (keys.size() + 1)), kNoRow);
    }
    const auto all = static_cast<uint32_t>(keys.size());
    struct Shared {
      uint64_t scratch[kMaxTopK], best[kMaxTopK];
      uint32_t partials[2 * 4], counter;
      uint64_t keys[1000];
    };
    RunGrid<4>(1, 1, 1, sizeof(Shared), static_cast<uint32_t>(trial), [&](EmulatedBlock<4>& block) {
      auto& shared = *reinterpret_cast<Shared*>(block.shared());
      for (uint32_t i = static_cast<uint32_t>(block.thread()); i < all; i += block.kThreads) shared.keys[i] = keys[i];
      block.Sync();
      const uint32_t kept =
          SortedBest(block, shared.keys, all, k, shared.scratch, shared.best, shared.partials, &shared.counter);
      EXPECT_EQ(kept, expected.size());
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), shared.best)) << "thread " << block.thread();
    });
  }
}

TEST(SelectTest, WarpReductions) {
  RunGrid<1>(1, 1, 1, 0, 5, [](EmulatedBlock<1>& block) {
    EXPECT_EQ(WarpSumOf(block, static_cast<float>(block.lane())), 496.0f);
    EXPECT_EQ(WarpGreatestOf(block, static_cast<float>(block.lane() % 13)), 12.0f);
    EXPECT_EQ(WarpGreatestOf(block, -Infinity()), -Infinity());
    const float nan = FloatOf(0x7FC00000u);
    const float greatest = WarpGreatestOf(block, block.lane() == 17 ? nan : 1.0f);
    EXPECT_NE(greatest, greatest);
  });
}

}  // namespace
}  // namespace mneme::cuda
