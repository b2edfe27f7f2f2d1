#include "index/lead.h"

#include <cmath>
#include <random>
#include <set>

#include "gtest/gtest.h"

namespace mneme {
namespace {

constexpr int64_t kChunkRows = KeyCodes::kChunkRows;
constexpr int64_t kChunkBlocks = kChunkRows / KeyCodes::kBlockRows;

TEST(LeadTest, TakesABlockOfWholeChunksAllOverTheRange) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const auto begin = static_cast<int64_t>(random() % 100000);
    const int64_t end = begin + static_cast<int64_t>(random() % (round % 2 == 0 ? 20000 : 2000000));
    const Lead lead(begin, end);
    SCOPED_TRACE(testing::Message() << "rows " << begin << " to " << end);
    std::set<int64_t> blocks;
    int64_t last = begin / kChunkRows;
    int64_t gap = 0;
    for (int64_t i = 0; i < lead.size(); ++i) {
      const int64_t chunk = lead.Block(i) / kChunkBlocks;
      ASSERT_GE(chunk * kChunkRows, begin);
      ASSERT_LE((chunk + 1) * kChunkRows, end);
      ASSERT_EQ(lead.BlockOf(chunk), lead.Block(i));
      ASSERT_TRUE(blocks.insert(lead.Block(i)).second);
      gap = std::max(gap, chunk - last);
      last = chunk;
    }
    for (int64_t chunk = begin / kChunkRows - 1; chunk < end / kChunkRows + 2; ++chunk) {
      const int64_t block = lead.BlockOf(chunk);
      ASSERT_TRUE(block == -1 || blocks.erase(block) == 1) << chunk;
    }
    ASSERT_TRUE(blocks.empty());
    const int64_t chunks = end / kChunkRows - (begin + kChunkRows - 1) / kChunkRows;
    if (chunks <= 0) {
      ASSERT_EQ(lead.size(), 0);
      continue;
    }
    ASSERT_GE(lead.size(), std::min<int64_t>(chunks, 62));
    ASSERT_LE(lead.size(), 130);
    ASSERT_LE(std::max(gap, end / kChunkRows - last), chunks / 31 + 2);
  }
}

TEST(LeadTest, NotTheSameBlockOfEachChunk) {
  const Lead lead(0, 64 * kChunkRows);
  std::set<int64_t> places;
  for (int64_t i = 0; i < lead.size(); ++i) places.insert(lead.Block(i) % kChunkBlocks);
  EXPECT_EQ(places.size(), static_cast<size_t>(kChunkBlocks));
}

TEST(LeadTest, NothingAtAll) {
  const Lead none;
  EXPECT_EQ(none.size(), 0);
  for (int64_t chunk = 0; chunk < 100; ++chunk) EXPECT_EQ(none.BlockOf(chunk), -1);
}

// Were rows in any order: how often k rows do not reach what Rank blocks reach, by the binomial distribution.
TEST(LeadTest, IsRarelyWrong) {
  for (const int64_t rows : {4096, 8192, 16384, 32768, 65536, 262144, 1048576}) {
    for (const int64_t k : {1, 2, 8, 16, 32, 64, 100, 256}) {
      const Lead lead(0, rows);
      if (!lead.Serves(k)) continue;
      const double share = static_cast<double>(lead.size() * KeyCodes::kBlockRows) / static_cast<double>(rows);
      // k - 1 rows or fewer reach it if as many blocks as that hold one of the k best.
      double wrong = 0;
      for (int64_t j = lead.Rank(k); j <= k; ++j) {
        const auto n = static_cast<double>(k), i = static_cast<double>(j);
        wrong += std::exp(std::lgamma(n + 1) - std::lgamma(i + 1) - std::lgamma(n - i + 1) + i * std::log(share) +
                          (n - i) * std::log1p(-share));
      }
      EXPECT_LT(wrong, 1.0 / 250) << rows << " rows, k " << k;
    }
  }
  EXPECT_TRUE(Lead(0, 8192).Serves(32));
  EXPECT_FALSE(Lead(0, 2048).Serves(32));
}

}  // namespace
}  // namespace mneme
