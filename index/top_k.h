// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_TOP_K_H_
#define MNEME_INDEX_TOP_K_H_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "absl/types/span.h"

namespace mneme {

// A retrieved row: its ranking logit and its token index.
struct Scored {
  float score = 0;
  int64_t index = 0;
};

// The one order of mneme: higher score first, ties by the lower token index. Total for distinct indices, so
// the k best of a set do not depend on the order in which they come or on how the set was cut.
inline constexpr auto Better = [](const Scored& a, const Scored& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
};

// The k best of the rows pushed so far. NaN scores never enter. Not thread-safe.
class TopK {
 public:
  explicit TopK(int64_t k = 0) { Reset(k); }
  // The same with room in `memory` for all that there will ever be of at most `rows` different rows: what is done with
  // it later takes no memory, so that any thread may do it.
  TopK(int64_t k, int64_t rows, std::pmr::memory_resource* memory);

  // Forgets all rows; keeps its memory.
  void Reset(int64_t k);

  int64_t k() const { return k_; }

  // A row with a lower score cannot enter; one with an equal score may. -infinity while fewer than k rows are in,
  // +infinity if k is 0.
  float threshold() const { return threshold_; }

  void Push(float score, int64_t index);
  void Merge(const TopK& other);

  // Sorted, best first. Valid until the next call of a non-const member.
  absl::Span<const Scored> Sorted();

 private:
  // Takes the place of the worst row in.
  void ReplaceWorst(Scored row);

  int64_t k_ = 0;
  float threshold_ = 0;            // the worst row's score once k are in …
  int64_t threshold_index_ = 0;    // … and its token index
  bool heap_ = false;              // k rows are in and lie as a heap, the worst of them first
  std::pmr::vector<Scored> rows_;  // memory follows rows, never k
};

}  // namespace mneme

#endif  // MNEME_INDEX_TOP_K_H_
