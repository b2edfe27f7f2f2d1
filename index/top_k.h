// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_TOP_K_H_
#define MNEME_INDEX_TOP_K_H_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "absl/types/span.h"

namespace mneme {

// A retrieved row.
struct Scored {
  float score = 0;    // its logit (Ranking): what rows are ranked by
  int64_t index = 0;  // its token index
};

// The one order of retrieved rows: higher score first, ties by the lower token index. It is total for distinct indices,
// so the k best of a set depend neither on the order in which they are pushed nor on how the set is divided.
inline constexpr auto Better = [](const Scored& a, const Scored& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
};

// The k best of the rows pushed so far. Rows with a NaN score are ignored. Not thread-safe.
class TopK {
 public:
  explicit TopK(int64_t k = 0) { Reset(k); }
  // Reserves room in `arena` for the best of at most `rows` different rows, so that later calls allocate nothing and
  // may come from any thread.
  TopK(int64_t k, int64_t rows, std::pmr::memory_resource* arena);

  // Forgets all rows; keeps its buffer.
  void Reset(int64_t k);

  int64_t k() const { return k_; }

  // A row with a lower score is not among the k best; one with an equal score may be. -infinity while there are fewer
  // than k rows, +infinity if k is 0.
  float threshold() const { return threshold_; }

  void Push(float score, int64_t index);
  void Merge(const TopK& other);

  // Sorted, best first. Valid until the next call of a non-const member.
  absl::Span<const Scored> Sorted();

 private:
  // Replaces the worst row. Requires: the rows are a heap.
  void ReplaceWorst(Scored row);

  int64_t k_ = 0;
  float threshold_ = 0;            // the score of the worst row if there are k rows …
  int64_t threshold_index_ = 0;    // … and its token index
  bool heap_ = false;              // there are k rows and they form a heap, the worst of them first
  std::pmr::vector<Scored> rows_;  // grows with the rows, not with k
};

}  // namespace mneme

#endif  // MNEME_INDEX_TOP_K_H_
