// SPDX-License-Identifier: Apache-2.0
#include "index/scan/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mneme {
namespace {

// Room for the candidates beside the k best, often several times as many. For k above kMaxKForRoom they would not stay
// in the second-level cache, so keys are read as they come.
constexpr int64_t kRoom = 2048;
constexpr int64_t kMaxKForRoom = 256;

size_t CountAtLeast(absl::Span<const float> values, float bar) {
  int32_t count = 0;
  for (const float value : values) count += value >= bar ? 1 : 0;
  return static_cast<size_t>(count);
}

// Returns: a value above `low` that at least `wanted` values reach, and not many more than `wanted`; if there is none,
// `low` or -infinity. It bisects: each step is a pass without branches, so some steps cost less than selecting the
// exact value would.
float FindBar(absl::Span<const float> values, size_t wanted, float low) {
  constexpr int kSteps = 12;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float least = kInfinity, greatest = -kInfinity;
  for (const float value : values) {
    least = value < least ? value : least;
    greatest = value > greatest ? value : greatest;
  }
  low = std::max(low, least);
  if (!std::isfinite(low) || !std::isfinite(greatest) || CountAtLeast(values, low) < wanted) return -kInfinity;
  const size_t close_enough = wanted + wanted / 16;
  for (int step = 0; step < kSteps; ++step) {
    const float middle = low + (greatest - low) / 2;
    const size_t count = CountAtLeast(values, middle);
    (count >= wanted ? low : greatest) = middle;
    if (count >= wanted && count <= close_enough) break;
  }
  return low;
}

}  // namespace

void Candidates::Reset(int64_t k, bool use_estimates) {
  k_ = static_cast<size_t>(std::max<int64_t>(k, 1));
  use_estimates_ = use_estimates;
  estimated_threshold_ = -std::numeric_limits<float>::infinity();
  max_size_ = static_cast<size_t>(k <= kMaxKForRoom ? std::max(kRoom, 8 * k) : kRoom);
  // The first pruning comes early: the sooner there is a threshold, the fewer candidates are added.
  min_prune_at_ = std::min(max_size_, 4 * k_);
  prune_at_ = min_prune_at_;
  size_ = 0;
}

void Candidates::Grow() {
  const size_t size = std::max<size_t>(64, 2 * rows_.size());
  rows_.resize(size);
  estimates_.resize(size);
  upper_bounds_.resize(size);
}

void Candidates::Prune(float threshold) {
  if (use_estimates_ && size_ >= k_) {
    const float bar = FindBar(absl::MakeConstSpan(estimates_.data(), size_), k_, estimated_threshold_);
    estimated_threshold_ = std::max(estimated_threshold_, bar);
  }
  threshold = std::max(threshold, estimated_threshold_);
  size_t kept = 0;
  for (size_t i = 0; i < size_; ++i) {
    const bool keep = !(upper_bounds_[i] < threshold);
    rows_[kept] = rows_[i];
    estimates_[kept] = estimates_[i];
    upper_bounds_[kept] = upper_bounds_[i];
    kept += keep ? 1 : 0;
  }
  size_ = kept;
  prune_at_ = std::min(max_size_, std::max(2 * size_, min_prune_at_));
}

absl::Span<const int32_t> Candidates::MostPromisingFirst() {
  order_.resize(size_);
  const size_t first = 2 * k_;
  const absl::Span<const float> bounds = absl::MakeConstSpan(upper_bounds_.data(), size_);
  const float bar = first < size_ ? FindBar(bounds, first, -std::numeric_limits<float>::max()) : 0;
  size_t promising = 0, others = CountAtLeast(bounds, bar);
  for (size_t i = 0; i < size_; ++i) {
    const bool reaches = bounds[i] >= bar;
    order_[reaches ? promising : others] = static_cast<int32_t>(i);
    promising += reaches ? 1 : 0;
    others += reaches ? 0 : 1;
  }
  return order_;
}

}  // namespace mneme
