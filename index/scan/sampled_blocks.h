// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_SAMPLED_BLOCKS_H_
#define MNEME_INDEX_SCAN_SAMPLED_BLOCKS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "index/scan/code_block.h"

namespace mneme {

// A sample of blocks, which a scan reads before all others to estimate its threshold: one block of every step-th chunk.
// If Rank(k) of the sampled blocks have a row that reaches some logit, then k rows of all chunks very likely reach it.
// A block counts once, however many of its rows are good, because neighbouring rows are alike.
class SampledBlocks {
 public:
  // chunks: the whole chunks of all ranges of the scan, numbered through. Samples all of them if there are fewer than
  // 96, else 48 to 95.
  explicit SampledBlocks(int64_t chunks)
      : step_(std::max<int64_t>(1, (chunks + kTarget / 2) / kTarget)), size_((chunks + step_ - 1) / step_) {}

  int64_t size() const { return size_; }

  // The number of the chunk of sampled block i.
  int64_t Chunk(int64_t i) const { return i * step_; }

  // The place of sampled block i in its chunk. It differs from chunk to chunk, because text may repeat at a regular
  // distance.
  static int64_t PlaceInChunk(int64_t i) { return i * 7 % codes::kChunkBlocks; }

  // How many sampled blocks must reach a logit for k rows of all chunks to reach it. Were rows in random order, this
  // would be wrong less often than once in 250 scans: the number of the k best rows in the sample is binomial, and Rank
  // is its mean plus three standard deviations plus two.
  int64_t Rank(int64_t k) const {
    const double mean = static_cast<double>(k) / static_cast<double>(step_ * codes::kChunkBlocks);
    return static_cast<int64_t>(mean + 3 * std::sqrt(mean)) + 2;
  }

  // Whether the sample is large enough for `k`.
  bool EnoughFor(int64_t k) const { return size() >= 2 * Rank(k); }

 private:
  // About how many blocks a sample has. More blocks estimate a better threshold and take longer to read; 64 was best
  // from 4,096 rows to 65,536.
  static constexpr int64_t kTarget = 64;

  int64_t step_;  // chunks from one sampled block to the next
  int64_t size_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_SAMPLED_BLOCKS_H_
