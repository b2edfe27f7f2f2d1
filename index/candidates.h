#ifndef MNEME_INDEX_CANDIDATES_H_
#define MNEME_INDEX_CANDIDATES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace mneme {

// A row that its code could not rule out.
struct Candidate {
  int64_t row;
  int32_t range;  // of rows, numbered by whoever scans them
  float likely;   // a logit that it reaches in all likelihood; -infinity if none is known
  float most;     // a logit that it is known not to exceed
};

// The rows of one query whose keys may have to be read. Reading is put off, for the more of them there are, the fewer
// remain: the k-th greatest `likely` is a logit that the k-th best row reaches in all likelihood, so a row whose `most`
// is below it may be passed over, though no key has been looked at. Whoever does so has to see to it in the end that
// the k-th best row did reach `assumed`. Not thread-safe.
class Candidates {
 public:
  // Forgets all rows; keeps its memory. Nothing is assumed if not `assume`.
  void Reset(int64_t k, bool assume);

  void Add(const Candidate& row) { rows_.push_back(row); }

  // Whether it is time to Thin.
  bool full() const { return rows_.size() >= limit_; }

  // Drops the rows that cannot reach `threshold` or `assumed`, which it may raise. If still `crowded`, the keys had
  // better be read now.
  void Thin(float threshold);
  float assumed() const { return assumed_; }
  bool crowded() const { return rows_.size() > most_rows_ / 2; }

  // The most promising rows come first, twice as many as k; a threshold made of them rules out most of the others.
  absl::Span<const Candidate> BestFirst();
  void Clear() { rows_.clear(); }

 private:
  size_t k_ = 0;
  bool assume_ = true;
  float assumed_ = 0;
  size_t limit_ = 0;
  size_t most_rows_ = 0;
  std::vector<Candidate> rows_;
  std::vector<float> likely_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_CANDIDATES_H_
