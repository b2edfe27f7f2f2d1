#include "index/top_k.h"

#include <algorithm>
#include <limits>

namespace mneme {
namespace {

// Rows beyond k that are let in before the reservoir is cut: few, so that the threshold stays fresh (every row that it
// lets in costs the reading of a key), and enough that cutting is rare for k = 1.
int64_t Slack(int64_t k) { return std::max<int64_t>(16, k / 4); }

}  // namespace

void TopK::Reset(int64_t k) {
  k_ = std::max<int64_t>(k, 0);
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  trim_at_ = k_ > kMost / 2 ? kMost : k_ + Slack(k_);
  threshold_ = k_ == 0 ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
  threshold_index_ = kMost;
  rows_.clear();
}

void TopK::Push(float score, int64_t index) {
  const auto size = static_cast<int64_t>(rows_.size());
  if (size >= k_) {
    // The comparison is false for NaN, too.
    if (k_ == 0 || !Better({score, index}, {threshold_, threshold_index_})) return;
  } else if (score != score) {
    return;
  }
  rows_.push_back({score, index});
  if (size + 1 == k_ || size + 1 >= trim_at_) Trim();
}

void TopK::Merge(const TopK& other) {
  for (size_t i = 0; i < other.rows_.size(); ++i) Push(other.rows_[i].score, other.rows_[i].index);
}

absl::Span<const Scored> TopK::Sorted() {
  Trim();
  std::sort(rows_.begin(), rows_.end(), Better);
  return rows_;
}

// Cuts the reservoir to the k best; with k rows in, the worst of them is the threshold.
void TopK::Trim() {
  if (k_ == 0 || static_cast<int64_t>(rows_.size()) < k_) return;
  const auto worst = rows_.begin() + (k_ - 1);
  std::nth_element(rows_.begin(), worst, rows_.end(), Better);
  threshold_ = worst->score;
  threshold_index_ = worst->index;
  rows_.resize(static_cast<size_t>(k_));
}

}  // namespace mneme
