// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CANDIDATES_H_
#define MNEME_INDEX_SCAN_CANDIDATES_H_

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

  void Add(const Candidate& row) {
    if (size_ == rows_.size()) Grow();
    rows_[size_] = {row.row, row.range};
    likely_[size_] = row.likely;
    most_[size_++] = row.most;
  }

  size_t size() const { return size_; }
  Candidate operator[](size_t i) const { return {rows_[i].row, rows_[i].range, likely_[i], most_[i]}; }

  // Whether it is time to Thin.
  bool full() const { return size_ >= limit_; }
  // Fewer rows than this are read sooner than thinned.
  bool few() const { return size_ < 2 * k_; }

  // Drops the rows that cannot reach `threshold` or `assumed`, which it may raise. If still `crowded`, the keys had
  // better be read now.
  void Thin(float threshold);
  float assumed() const { return assumed_; }
  void Assume(float logit) { assumed_ = logit > assumed_ ? logit : assumed_; }
  bool crowded() const { return size_ > most_rows_ / 2; }

  // The numbers of all rows, the most promising first, about twice as many as k: a threshold made of them rules out
  // most of the others. Valid until the next call of a non-const member.
  absl::Span<const int32_t> BestFirst();
  void Clear() { size_ = 0; }

 private:
  struct Place {
    int64_t row;
    int32_t range;
  };

  void Grow();

  size_t k_ = 0;
  bool assume_ = true;
  float assumed_ = 0;
  size_t least_limit_ = 0;
  size_t limit_ = 0;
  size_t most_rows_ = 0;
  size_t size_ = 0;
  std::vector<Place> rows_;  // these three: as long as there was ever need for, the first size_ in use
  std::vector<float> likely_;
  std::vector<float> most_;
  std::vector<int32_t> order_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_CANDIDATES_H_
