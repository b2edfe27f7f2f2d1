// SPDX-License-Identifier: Apache-2.0
#include "index/scan/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mneme {
namespace {

// Room for the rows that the bounds leave beside the k best, often several times as many. Of a greater k they would not
// stay in the second-level cache: keys are read as they come.
constexpr int64_t kRoom = 2048;
constexpr int64_t kGreatestK = 256;

// How many values are at least `bar`.
size_t CountFrom(absl::Span<const float> values, float bar) {
  int32_t count = 0;
  for (const float value : values) count += value >= bar ? 1 : 0;
  return static_cast<size_t>(count);
}

// A bar that at least `wanted` values reach and not many more; `low` or below, if it cannot be raised above that. By
// halving: each step is a pass without branches, so a few of them cost less than selecting the exact one.
float BarFor(absl::Span<const float> values, size_t wanted, float low) {
  constexpr int kSteps = 12;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float least = kInfinity, greatest = -kInfinity;
  for (const float value : values) {
    least = value < least ? value : least;
    greatest = value > greatest ? value : greatest;
  }
  low = std::max(low, least);
  if (!std::isfinite(low) || !std::isfinite(greatest) || CountFrom(values, low) < wanted) return -kInfinity;
  const size_t enough = wanted + wanted / 16;
  for (int step = 0; step < kSteps; ++step) {
    const float middle = low + (greatest - low) / 2;
    const size_t count = CountFrom(values, middle);
    (count >= wanted ? low : greatest) = middle;
    if (count >= wanted && count <= enough) break;
  }
  return low;
}

}  // namespace

void Candidates::Reset(int64_t k, bool assume) {
  k_ = static_cast<size_t>(std::max<int64_t>(k, 1));
  assume_ = assume;
  assumed_ = -std::numeric_limits<float>::infinity();
  most_rows_ = static_cast<size_t>(k <= kGreatestK ? std::max(kRoom, 8 * k) : kRoom);
  // Soon at first: the sooner a threshold is known, the fewer rows come.
  least_limit_ = std::min(most_rows_, 4 * k_);
  limit_ = least_limit_;
  size_ = 0;
}

void Candidates::Grow() {
  const size_t size = std::max<size_t>(64, 2 * rows_.size());
  rows_.resize(size);
  likely_.resize(size);
  most_.resize(size);
}

void Candidates::Thin(float threshold) {
  if (assume_ && size_ >= k_) {
    assumed_ = std::max(assumed_, BarFor(absl::MakeConstSpan(likely_.data(), size_), k_, assumed_));
  }
  threshold = std::max(threshold, assumed_);
  size_t kept = 0;
  for (size_t i = 0; i < size_; ++i) {
    const bool keep = !(most_[i] < threshold);
    rows_[kept] = rows_[i];
    likely_[kept] = likely_[i];
    most_[kept] = most_[i];
    kept += keep ? 1 : 0;
  }
  size_ = kept;
  limit_ = std::min(most_rows_, std::max(2 * size_, least_limit_));
}

absl::Span<const int32_t> Candidates::BestFirst() {
  order_.resize(size_);
  const size_t first = 2 * k_;
  const absl::Span<const float> most = absl::MakeConstSpan(most_.data(), size_);
  const float bar = first < size_ ? BarFor(most, first, -std::numeric_limits<float>::max()) : 0;
  size_t best = 0, rest = CountFrom(most, bar);
  for (size_t i = 0; i < size_; ++i) {
    const bool promising = most[i] >= bar;
    order_[promising ? best : rest] = static_cast<int32_t>(i);
    best += promising ? 1 : 0;
    rest += promising ? 0 : 1;
  }
  return order_;
}

}  // namespace mneme
