#include "index/candidates.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace mneme {
namespace {

// Room for the rows that the bounds leave beside the k best, often several times as many. Of a greater k they would not
// stay in the second-level cache: keys are read as they come.
constexpr int64_t kRoom = 2048;
constexpr int64_t kGreatestK = 256;

}  // namespace

void Candidates::Reset(int64_t k, bool assume) {
  k_ = static_cast<size_t>(std::max<int64_t>(k, 1));
  assume_ = assume;
  assumed_ = -std::numeric_limits<float>::infinity();
  most_rows_ = static_cast<size_t>(k <= kGreatestK ? std::max(kRoom, 8 * k) : kRoom);
  // Soon at first: the sooner a threshold is known, the fewer rows come.
  limit_ = std::min(most_rows_, 2 * k_);
  rows_.clear();
}

void Candidates::Thin(float threshold) {
  if (assume_ && rows_.size() >= k_) {
    likely_.clear();
    for (const Candidate& row : rows_) likely_.push_back(row.likely);
    const auto kth = likely_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
    std::nth_element(likely_.begin(), kth, likely_.end(), std::greater<>());
    assumed_ = std::max(assumed_, *kth);
  }
  threshold = std::max(threshold, assumed_);
  std::erase_if(rows_, [&](const Candidate& row) { return row.most < threshold; });
  limit_ = std::min(most_rows_, 2 * std::max(rows_.size(), k_));
}

absl::Span<const Candidate> Candidates::BestFirst() {
  const size_t first = 2 * k_;
  if (first < rows_.size()) {
    std::nth_element(rows_.begin(), rows_.begin() + static_cast<std::ptrdiff_t>(first), rows_.end(),
                     [](const Candidate& a, const Candidate& b) { return a.most > b.most; });
  }
  return rows_;
}

}  // namespace mneme
