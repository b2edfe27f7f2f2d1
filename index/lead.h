#ifndef MNEME_INDEX_LEAD_H_
#define MNEME_INDEX_LEAD_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "index/key_codes.h"

namespace mneme {

// The blocks of a range of rows that are looked at before the rest: one of each of some chunks spread over it. What
// several of them reach, the k best rows of the range reach in all likelihood, so the rest needs looking at only from
// there on. A block counts once, however many of its rows are good, since neighbouring rows are alike.
class Lead {
 public:
  // Nothing is looked at before the rest.
  Lead() = default;

  // Of rows [row_begin, row_end): whole chunks, about kBlocks of them, if there are as many.
  Lead(int64_t row_begin, int64_t row_end)
      : step_(std::max<int64_t>(1, (row_end - row_begin) / KeyCodes::kChunkRows / kBlocks)),
        begin_((row_begin + step_ * KeyCodes::kChunkRows - 1) / (step_ * KeyCodes::kChunkRows) * step_),
        end_(std::max(begin_, row_end / KeyCodes::kChunkRows)) {}

  int64_t size() const { return (end_ - begin_ + step_ - 1) / step_; }

  // The number of the i-th block.
  int64_t Block(int64_t i) const { return BlockIn(begin_ + i * step_); }

  // The block that was looked at in chunk number `chunk`, -1 if none was.
  int64_t BlockOf(int64_t chunk) const {
    return chunk >= begin_ && chunk < end_ && chunk % step_ == 0 ? BlockIn(chunk) : -1;
  }

  // If this many blocks have a row that reaches something, then k rows of the range do, but for one time in some
  // hundreds: among the blocks are so many of the k best rows as a binomial distribution has it, its mean and three
  // standard deviations at most.
  int64_t Rank(int64_t k) const {
    const double mean = static_cast<double>(k) / static_cast<double>(step_ * kChunkBlocks);
    return static_cast<int64_t>(mean + 3 * std::sqrt(mean)) + 2;
  }

  // Whether enough blocks are there for that, and to spare.
  bool Serves(int64_t k) const { return size() >= 2 * Rank(k); }

 private:
  // More of them give a better threshold and take longer: from 4,096 rows to 65,536, 64 of them did best.
  static constexpr int64_t kBlocks = 64;
  static constexpr int64_t kChunkBlocks = KeyCodes::kChunkRows / KeyCodes::kBlockRows;

  // Not the same one of each chunk, for texts have rhythms.
  int64_t BlockIn(int64_t chunk) const { return chunk * kChunkBlocks + chunk / step_ * 7 % kChunkBlocks; }

  int64_t step_ = 1;             // chunks from one block to the next
  int64_t begin_ = 0, end_ = 0;  // chunks
};

}  // namespace mneme

#endif  // MNEME_INDEX_LEAD_H_
