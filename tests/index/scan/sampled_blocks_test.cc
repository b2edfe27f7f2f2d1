// SPDX-License-Identifier: Apache-2.0
#include "index/scan/sampled_blocks.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "gtest/gtest.h"

#include "index/scan/key_codes.h"

namespace mneme {
namespace {

TEST(SampledBlocksTest, LieAllOverTheRange) {
  for (int64_t chunks = 0; chunks < 5000; ++chunks) {
    const SampledBlocks sample(chunks);
    SCOPED_TRACE(testing::Message() << chunks << " chunks");
    std::set<int64_t> taken;
    int64_t last = 0, gap = 0;
    for (int64_t i = 0; i < sample.size(); ++i) {
      const int64_t chunk = sample.Chunk(i);
      ASSERT_GE(chunk, last);
      ASSERT_LT(chunk, chunks);
      ASSERT_GE(SampledBlocks::PlaceInChunk(i), 0);
      ASSERT_LT(SampledBlocks::PlaceInChunk(i), codes::kChunkBlocks);
      ASSERT_TRUE(taken.insert(chunk).second);
      gap = std::max(gap, chunk - last);
      last = chunk;
    }
    ASSERT_GE(sample.size(), std::min<int64_t>(chunks, 48));
    ASSERT_LE(sample.size(), 96);
    ASSERT_LE(std::max(gap, chunks - last), std::max<int64_t>(1, (chunks + 32) / 64));
  }
}

TEST(SampledBlocksTest, AreNotTheSameBlockOfEachChunk) {
  std::set<int64_t> places;
  for (int64_t i = 0; i < SampledBlocks(64).size(); ++i) places.insert(SampledBlocks::PlaceInChunk(i));
  EXPECT_EQ(places.size(), static_cast<size_t>(codes::kChunkBlocks));
}

// For rows in random order, how often fewer than k rows reach what Rank(k) blocks reach, by the binomial distribution.
TEST(SampledBlocksTest, RankIsRarelyTooLow) {
  for (const int64_t rows : {4096, 8192, 16384, 32768, 65536, 262144, 1048576}) {
    for (const int64_t k : {1, 2, 8, 16, 32, 64, 100, 256}) {
      const SampledBlocks sample(rows / KeyCodes::kChunkRows);
      if (!sample.EnoughFor(k)) continue;
      const double share = static_cast<double>(sample.size() * KeyCodes::kBlockRows) / static_cast<double>(rows);
      // k - 1 rows or fewer reach it if as many blocks as that hold one of the k best.
      double wrong = 0;
      for (int64_t j = sample.Rank(k); j <= k; ++j) {
        const auto n = static_cast<double>(k), i = static_cast<double>(j);
        wrong += std::exp(std::lgamma(n + 1) - std::lgamma(i + 1) - std::lgamma(n - i + 1) + i * std::log(share) +
                          (n - i) * std::log1p(-share));
      }
      EXPECT_LT(wrong, 1.0 / 250) << rows << " rows, k " << k;
    }
  }
  EXPECT_TRUE(SampledBlocks(8192 / KeyCodes::kChunkRows).EnoughFor(32));
  EXPECT_FALSE(SampledBlocks(2048 / KeyCodes::kChunkRows).EnoughFor(32));
}

}  // namespace
}  // namespace mneme
