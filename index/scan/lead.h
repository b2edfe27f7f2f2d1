// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_LEAD_H_
#define MNEME_INDEX_SCAN_LEAD_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "index/scan/key_codes.h"

namespace mneme {

// The blocks that are looked at before a scan of all: one of each of some chunks spread over all of them. What several
// of them reach, the k best rows reach in all likelihood, so that only rows which may reach it need be kept. A block
// counts once, however many of its rows are good, since neighbouring rows are alike.
class Lead {
 public:
  // Of `chunks` whole chunks, counted through whatever ranges they lie in: of kBlocks of them, up to a half more or a
  // quarter fewer, if there are as many.
  explicit Lead(int64_t chunks)
      : step_(std::max<int64_t>(1, (chunks + kBlocks / 2) / kBlocks)), size_((chunks + step_ - 1) / step_) {}

  int64_t size() const { return size_; }

  // The number of the i-th chunk that a block is taken of.
  int64_t Chunk(int64_t i) const { return i * step_; }

  // Where in its chunk the i-th block stands: not at the same place in each, for texts have rhythms.
  static int64_t Place(int64_t i) { return i * 7 % codes::kChunkBlocks; }

  // If this many blocks have a row that reaches something, then k rows of the chunks do, but for one time in some
  // hundreds: among the blocks are so many of the k best rows as a binomial distribution has it, its mean and three
  // standard deviations at most.
  int64_t Rank(int64_t k) const {
    const double mean = static_cast<double>(k) / static_cast<double>(step_ * codes::kChunkBlocks);
    return static_cast<int64_t>(mean + 3 * std::sqrt(mean)) + 2;
  }

  // Whether enough blocks are there for that, and to spare.
  bool Serves(int64_t k) const { return size() >= 2 * Rank(k); }

 private:
  // More of them give a better threshold and take longer: from 4,096 rows to 65,536, 64 of them did best.
  static constexpr int64_t kBlocks = 64;

  int64_t step_;  // chunks from one block to the next
  int64_t size_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_LEAD_H_
