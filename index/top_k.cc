// SPDX-License-Identifier: Apache-2.0
#include "index/top_k.h"

#include <algorithm>
#include <limits>

namespace mneme {
namespace {

// The most rows that are sorted by counting the rows above each.
constexpr size_t kFew = 64;

// Sorts rows, best first. Returns: false, with the rows unchanged, if there are more than kFew or some scores are
// equal. A sort that branches on comparisons takes several times as long, because they cannot be predicted.
bool SortByCounting(absl::Span<Scored> rows) {
  constexpr size_t kUnrolled = 16;
  if (rows.size() > kFew) return false;
  float scores[kFew];
  std::fill_n(scores, kFew, std::numeric_limits<float>::quiet_NaN());  // neither above nor equal to any score
  for (size_t i = 0; i < rows.size(); ++i) scores[i] = rows[i].score;
  const size_t end = (rows.size() + kUnrolled - 1) / kUnrolled * kUnrolled;
  int32_t above[kFew];
  int32_t equal = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const float score = scores[i];
    int32_t count = 0;
    for (size_t j = 0; j < end; ++j) {
      count += scores[j] > score ? 1 : 0;
      equal += scores[j] == score ? 1 : 0;
    }
    above[i] = count;
  }
  if (static_cast<size_t>(equal) > rows.size()) return false;
  Scored sorted[kFew];
  for (size_t i = 0; i < rows.size(); ++i) sorted[above[i]] = rows[i];
  std::copy_n(sorted, rows.size(), rows.data());
  return true;
}

}  // namespace

TopK::TopK(int64_t k, int64_t rows, std::pmr::memory_resource* arena) : rows_(arena) {
  Reset(k);
  rows_.reserve(static_cast<size_t>(std::min(k_, rows)));
}

void TopK::Reset(int64_t k) {
  k_ = std::max<int64_t>(k, 0);
  threshold_ = k_ == 0 ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
  threshold_index_ = std::numeric_limits<int64_t>::max();
  heap_ = false;
  rows_.clear();
}

void TopK::Push(float score, int64_t index) {
  const auto size = static_cast<int64_t>(rows_.size());
  if (size < k_) {
    if (score != score) return;
    rows_.push_back({score, index});
    if (size + 1 < k_) return;
  } else {
    // The comparison is false for NaN, too.
    if (k_ == 0 || !Better({score, index}, {threshold_, threshold_index_})) return;
    if (heap_) {
      ReplaceWorst({score, index});
    } else {
      *std::max_element(rows_.begin(), rows_.end(), Better) = {score, index};
    }
  }
  if (!heap_) {
    std::make_heap(rows_.begin(), rows_.end(), Better);
    heap_ = true;
  }
  threshold_ = rows_.front().score;
  threshold_index_ = rows_.front().index;
}

void TopK::Merge(const TopK& other) {
  if (rows_.empty() && other.k_ == k_) {
    *this = other;
    return;
  }
  for (size_t i = 0; i < other.rows_.size(); ++i) Push(other.rows_[i].score, other.rows_[i].index);
}

absl::Span<const Scored> TopK::Sorted() {
  // Search and attention both call this for the same rows.
  if (std::is_sorted(rows_.begin(), rows_.end(), Better)) return rows_;
  if (!SortByCounting(absl::MakeSpan(rows_.data(), rows_.size()))) std::sort(rows_.begin(), rows_.end(), Better);
  heap_ = false;
  return rows_;
}

void TopK::ReplaceWorst(Scored row) {
  const size_t size = rows_.size();
  size_t at = 0;
  for (size_t child = 1; child < size; child = 2 * at + 1) {
    // The worse of the two children moves up if it is worse than the row.
    if (child + 1 < size && Better(rows_[child], rows_[child + 1])) ++child;
    if (!Better(row, rows_[child])) break;
    rows_[at] = rows_[child];
    at = child;
  }
  rows_[at] = row;
}

}  // namespace mneme
