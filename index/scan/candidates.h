// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CANDIDATES_H_
#define MNEME_INDEX_SCAN_CANDIDATES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace mneme {

// A row whose code does not prove that it is not among the k best.
struct Candidate {
  int64_t row;        // its place in the codes (CodedRange::Row gives the row)
  int32_t range;      // number of the row's range in the scan
  float estimate;     // a logit that the row very likely reaches; -infinity if there is no estimate
  float upper_bound;  // the row's logit is at most this
};

// The candidates of one query. Their keys are read as late as possible: k rows very likely reach the k-th greatest
// estimate, which rises as candidates come, and a candidate with a lower upper bound is dropped without reading its
// key.
//
// This estimated threshold may be too high. The caller must check in the end that the k-th best exact logit reaches
// estimated_threshold(), and scan again if it does not. Not thread-safe.
class Candidates {
 public:
  // Drops all candidates and keeps the buffers. k: of the query. use_estimates: whether Prune may drop candidates by
  // estimates.
  void Reset(int64_t k, bool use_estimates);

  void Add(const Candidate& candidate) {
    if (size_ == rows_.size()) Grow();
    rows_[size_] = {candidate.row, candidate.range};
    estimates_[size_] = candidate.estimate;
    upper_bounds_[size_++] = candidate.upper_bound;
  }

  size_t size() const { return size_; }
  Candidate operator[](size_t i) const { return {rows_[i].row, rows_[i].range, estimates_[i], upper_bounds_[i]}; }

  // Whether Prune should be called now.
  bool ShouldPrune() const { return size_ >= prune_at_; }
  // Whether reading the keys of all candidates is cheaper than pruning first.
  bool CheaperToRead() const { return size_ < 2 * k_; }

  // Drops the candidates that cannot reach `threshold` or the estimated threshold, which it may raise.
  void Prune(float threshold);
  // Whether Prune has left so many candidates that their keys should be read now.
  bool Crowded() const { return size_ > max_size_ / 2; }

  // A logit that k rows very likely reach; -infinity: there is no estimate.
  float estimated_threshold() const { return estimated_threshold_; }
  // Takes an estimate from elsewhere (the sampled blocks); has no effect if it is lower.
  void RaiseEstimatedThreshold(float logit) {
    estimated_threshold_ = logit > estimated_threshold_ ? logit : estimated_threshold_;
  }

  // The numbers of all candidates, about 2 k of those with the greatest upper bounds first: their exact logits give a
  // threshold that rules out most of the others. Valid until the next call of a non-const member.
  absl::Span<const int32_t> MostPromisingFirst();
  void Clear() { size_ = 0; }

 private:
  struct Row {
    int64_t row;
    int32_t range;
  };

  void Grow();

  size_t k_ = 0;
  bool use_estimates_ = true;
  float estimated_threshold_ = 0;
  // Numbers of candidates: ShouldPrune from prune_at_ on, which is never below min_prune_at_ nor above max_size_.
  size_t min_prune_at_ = 0;
  size_t prune_at_ = 0;
  size_t max_size_ = 0;
  size_t size_ = 0;
  std::vector<Row> rows_;  // as are estimates_ and upper_bounds_: only ever grows, the first size_ elements are in use
  std::vector<float> estimates_;
  std::vector<float> upper_bounds_;
  std::vector<int32_t> order_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_CANDIDATES_H_
