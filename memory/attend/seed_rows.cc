// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/seed_rows.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/prefetch.h"
#include "base/status.h"
#include "memory/segment/missing_rows.h"

namespace mneme {

SeedRows::SeedRows(const SearchPlan& plan, int64_t kv_head, int32_t head, absl::Span<const int64_t> tokens,
                   std::pmr::memory_resource* arena)
    : plan_(&plan), head_(head), owners_(arena), keys_(arena), rows_(arena), read_(arena) {
  if (static_cast<int64_t>(tokens.size()) != plan.request->heads[static_cast<size_t>(head)].top_k) return;
  const size_t row_bytes = RowBytes(plan.stored_dtype(), plan.request->layer.key_dim);
  owners_.reserve(tokens.size());
  keys_.reserve(tokens.size());
  rows_.reserve(tokens.size());
  for (const int64_t token : tokens) {
    const VisibleRows* owner = plan.view->FindVisible(token);
    if (owner == nullptr) {
      keys_.clear();
      return;
    }
    owners_.push_back(owner);
    rows_.push_back(token - owner->first_token);
    keys_.push_back(owner->keys == nullptr ? nullptr
                                           : owner->keys->heads[static_cast<size_t>(kv_head)]->Row(rows_.back()));
    // The keys are scattered in RAM. KnownThreshold reads them only after the keys of all heads have been prefetched.
    if (keys_.back() != nullptr) PrefetchBytes(keys_.back(), row_bytes);
  }
  if (!ReadMissing(kv_head).ok()) keys_.clear();  // the search that follows reports the error if it meets it
}

absl::Status SeedRows::ReadMissing(int64_t kv_head) {
  std::vector<size_t> missing;
  for (size_t i = 0; i < keys_.size(); ++i) {
    if (keys_[i] == nullptr) missing.push_back(i);
  }
  if (missing.empty()) return absl::OkStatus();
  // ReadMissingRows takes rows segment by segment.
  std::sort(missing.begin(), missing.end(),
            [&](size_t a, size_t b) { return std::pair(owners_[a], rows_[a]) < std::pair(owners_[b], rows_[b]); });
  const size_t row_bytes = RowBytes(plan_->stored_dtype(), plan_->request->layer.key_dim);
  read_.resize(missing.size() * row_bytes);
  std::vector<MissingRow> rows;
  for (size_t i = 0; i < missing.size(); ++i) {
    rows.push_back({owners_[missing[i]]->segment.get(), rows_[missing[i]]});
    keys_[missing[i]] = read_.data() + i * row_bytes;
  }
  return ReadMissingRows(plan_->view->layer, kv_head, RowKind::kKeys, rows, row_bytes, absl::MakeSpan(read_));
}

float SeedRows::KnownThreshold(int64_t query) const {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr size_t kBatch = 16;
  if (keys_.empty()) return -kInfinity;
  float worst = kInfinity;
  for (size_t first = 0; first < keys_.size(); first += kBatch) {
    const size_t n = std::min(kBatch, keys_.size() - first);
    float dots[kBatch];
    DotKeys(plan_->stored_dtype(), plan_->request->layer.key_dim, absl::MakeConstSpan(keys_).subspan(first, n),
            plan_->Vector(head_, query), dots);
    for (size_t i = 0; i < n; ++i) {
      const float logit = plan_->RankingOf(head_, query, *owners_[first + i]).Logit(dots[i], rows_[first + i]);
      // A row with a NaN logit is never retrieved, so these are not top_k rows.
      if (logit != logit) return -kInfinity;
      worst = std::min(worst, logit);
    }
  }
  return worst == kInfinity ? -kInfinity : worst;
}

}  // namespace mneme
