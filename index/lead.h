#ifndef MNEME_INDEX_LEAD_H_
#define MNEME_INDEX_LEAD_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "index/key_codes.h"

namespace mneme {

// The blocks of a scan that are looked at before the rest: one of each of some chunks spread over all of them. What
// several of them reach, the k best rows reach in all likelihood, so the rest needs looking at only from there on. A
// block counts once, however many of its rows are good, since neighbouring rows are alike.
class Lead {
 public:
  // Nothing is looked at before the rest.
  Lead() = default;

  // Of `chunks` whole chunks, counted through whatever ranges they lie in: of kBlocks of them, up to a half more or a
  // quarter fewer, if there are as many.
  explicit Lead(int64_t chunks)
      : step_(std::max<int64_t>(1, (chunks + kBlocks / 2) / kBlocks)), size_((chunks + step_ - 1) / step_) {}

  int64_t size() const { return size_; }
  // Leaves the blocks from number `size` on to the rest.
  void Shorten(int64_t size) { size_ = std::min(size_, size); }

  // The number of the i-th chunk that a block is taken of.
  int64_t Chunk(int64_t i) const { return i * step_; }

  // Where in chunk number `chunk` that block stands; -1 if none is taken of it.
  int64_t BlockIn(int64_t chunk) const {
    if (chunk % step_ != 0 || chunk / step_ >= size_) return -1;
    // Not the same one of each chunk, for texts have rhythms.
    return chunk / step_ * 7 % codes::kChunkBlocks;
  }

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

  int64_t step_ = 1;  // chunks from one block to the next
  int64_t size_ = 0;
};

}  // namespace mneme

#endif  // MNEME_INDEX_LEAD_H_
