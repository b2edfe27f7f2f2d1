// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/gathered_rows.h"

#include <algorithm>

#include "base/status.h"
#include "memory/attend/shared_status.h"
#include "memory/segment/missing_rows.h"

namespace mneme {
namespace {

// Returns: null if RAM does not hold the row.
const char* RowInRam(const VisibleRows& rows, RowKind kind, int64_t kv_head, int64_t token) {
  const auto head = static_cast<size_t>(kv_head);
  const int64_t row = token - rows.first_token;
  if (kind == RowKind::kKeys) return rows.keys == nullptr ? nullptr : rows.keys->heads[head]->Row(row);
  return rows.values == nullptr ? nullptr : rows.values->heads[head]->Row(row);
}

}  // namespace

absl::StatusOr<GatheredRows> GatheredRows::Read(const MemoryView& view, const LayerCard& layer, RowKind kind,
                                                DType dtype, absl::Span<TopK> top, Executor& executor) {
  GatheredRows gathered;
  gathered.kind_ = kind;
  gathered.row_bytes_ = RowBytes(dtype, kind == RowKind::kKeys ? layer.key_dim : layer.value_dim);
  const bool complete = std::all_of(view.rows.begin(), view.rows.end(), [&](const VisibleRows& rows) {
    return kind == RowKind::kKeys ? rows.keys != nullptr : rows.values != nullptr;
  });
  if (complete) return gathered;
  gathered.heads_.resize(static_cast<size_t>(layer.kv_heads));
  MNEME_RETURN_IF_ERROR(ParallelForStatus(executor, gathered.heads_.size(), "read rows", [&](size_t head) {
    return gathered.ReadHead(view, layer, static_cast<int64_t>(head), top);
  }));
  return gathered;
}

absl::Status GatheredRows::ReadHead(const MemoryView& view, const LayerCard& layer, int64_t kv_head,
                                    absl::Span<TopK> top) {
  Head& own = heads_[static_cast<size_t>(kv_head)];
  for (size_t i = 0; i < top.size(); ++i) {
    const auto query_head = static_cast<int64_t>(i) % layer.query_heads;
    if (query_head / layer.group() != kv_head) continue;
    for (const Scored& row : top[i].Sorted()) {
      if (RowInRam(view.Find(row.index), kind_, kv_head, row.index) == nullptr) own.tokens.push_back(row.index);
    }
  }
  std::sort(own.tokens.begin(), own.tokens.end());
  own.tokens.erase(std::unique(own.tokens.begin(), own.tokens.end()), own.tokens.end());
  own.rows.resize(own.tokens.size() * row_bytes_);
  std::vector<MissingRow> missing;
  for (const int64_t token : own.tokens) {
    const VisibleRows& rows = view.Find(token);
    missing.push_back({rows.segment.get(), token - rows.first_token});
  }
  return ReadMissingRows(view.layer, kv_head, kind_, missing, row_bytes_, absl::MakeSpan(own.rows));
}

const char* GatheredRows::Row(const MemoryView& view, int64_t kv_head, int64_t token) const {
  if (const char* row = RowInRam(view.Find(token), kind_, kv_head, token); row != nullptr) return row;
  const Head& head = heads_[static_cast<size_t>(kv_head)];
  const auto place = std::lower_bound(head.tokens.begin(), head.tokens.end(), token) - head.tokens.begin();
  return head.rows.data() + static_cast<size_t>(place) * row_bytes_;
}

}  // namespace mneme
