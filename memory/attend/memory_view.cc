// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/memory_view.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/status.h"
#include "memory/attend/shared_status.h"

namespace mneme {
namespace {

// A search ranks about this many rows by their exact keys for each row that it retrieves; codes rule out the others.
constexpr int64_t kExactKeysPerRow = 3;

// Adds the visible rows of one segment or tail to `rows`: the tokens [begin, end) that it owns, pinned ones apart.
void AddVisibleRows(const std::shared_ptr<Segment>& segment, int64_t first_token, int64_t row_count,
                    const MemoryState& state, int64_t begin, int64_t end, std::pmr::vector<VisibleRows>& rows) {
  const auto add = [&](int64_t from, int64_t to, bool pinned) {
    from = std::max({from, begin, first_token});
    to = std::min({to, end, first_token + row_count});
    if (from >= to) return;
    rows.push_back({.segment = segment,
                    .first_token = first_token,
                    .row_begin = from - first_token,
                    .row_end = to - first_token,
                    .pinned = pinned});
  };
  add(0, state.pinned_tokens, true);
  add(std::max(state.pinned_tokens, state.first_kept), std::numeric_limits<int64_t>::max(), false);
}

// Fills in keys, codes, values and columns of the rows of a view.
class RowLoader {
 public:
  RowLoader(const RetrieveRequest& request, const Sequence& sequence, bool values, MemoryView& view)
      : view_(view),
        state_(*view.snapshot.state),
        values_(values),
        all_keys_(!state_.runs.empty()),
        visible_rows_(view.RowCount()) {
    for (const HeadRule& head : request.heads) {
      rows_to_retrieve_ += head.top_k * (sequence.query_end - sequence.query_begin);
    }
  }

  // Threads help where several segments have to be read.
  absl::Status LoadAll(Executor& executor) {
    const auto not_loaded = std::count_if(view_.rows.begin(), view_.rows.end(), [&](const VisibleRows& rows) {
      return !rows.segment->IsLoaded(view_.layer, rows.row_end);
    });
    if (not_loaded < 2) {
      for (VisibleRows& rows : view_.rows) MNEME_RETURN_IF_ERROR(Load(rows));
    } else {
      MNEME_RETURN_IF_ERROR(
          ParallelForStatus(executor, view_.rows.size(), "load rows", [&](size_t i) { return Load(view_.rows[i]); }));
    }
    ShareWithPinnedRows();
    return absl::OkStatus();
  }

 private:
  absl::Status Load(VisibleRows& rows) {
    const double share = static_cast<double>(rows.row_end - rows.row_begin) / static_cast<double>(visible_rows_);
    const auto expected = static_cast<int64_t>(share * static_cast<double>(rows_to_retrieve_));
    const SearchNeeds needs{.all_keys = all_keys_,
                            .values = values_,
                            .single_keys = kExactKeysPerRow * expected,
                            .single_values = expected};
    MNEME_ASSIGN_OR_RETURN(SearchRows loaded, rows.segment->LoadForSearch(view_.layer, rows.row_end, needs));
    rows.keys = std::move(loaded.keys);
    rows.codes = std::move(loaded.codes);
    rows.values = std::move(loaded.values);
    if (state_.has_positions) {
      MNEME_ASSIGN_OR_RETURN(rows.columns, rows.segment->Columns(rows.row_end));
    }
    return absl::OkStatus();
  }

  // A segment that has pinned rows has two entries. The first takes over what was loaded for the second alone.
  void ShareWithPinnedRows() {
    for (size_t i = 1; i < view_.rows.size(); ++i) {
      VisibleRows& before = view_.rows[i - 1];
      const VisibleRows& rows = view_.rows[i];
      if (before.segment != rows.segment) continue;
      if (before.keys == nullptr) before.keys = rows.keys;
      if (before.values == nullptr) before.values = rows.values;
    }
  }

  MemoryView& view_;
  const MemoryState& state_;
  const bool values_;
  const bool all_keys_;  // candidates of an index are ranked by exact keys of rows all over the memory
  const int64_t visible_rows_;
  int64_t rows_to_retrieve_ = 0;  // by all queries and heads
};

void FillLayerView(const RetrieveRequest& request, const Sequence& sequence, std::pmr::memory_resource* arena,
                   LayerView& view) {
  if (sequence.snapshot != nullptr) {
    view.snapshot = *sequence.snapshot;
  } else {
    view.snapshot = sequence.memory->TakeSnapshot(arena);
  }
  view.layer = static_cast<size_t>(sequence.memory->card().FindLayer(request.layer.layer));
  const int64_t layer_end = view.snapshot.layer_ends[view.layer];
  view.end = sequence.memory_end < 0 ? layer_end : std::min(sequence.memory_end, layer_end);
}

}  // namespace

int64_t MemoryView::RowCount() const {
  int64_t count = 0;
  for (const VisibleRows& range : rows) count += range.row_end - range.row_begin;
  return count;
}

const VisibleRows& MemoryView::Find(int64_t token) const {
  // A binary search without branches, because a processor cannot predict them.
  size_t first = 0;
  for (size_t n = rows.size(); n > 1;) {
    const size_t half = n / 2;
    first += static_cast<size_t>(rows[first + half].token_begin() <= token) * half;
    n -= half;
  }
  return rows[first];
}

const VisibleRows* MemoryView::FindVisible(int64_t token) const {
  if (rows.empty()) return nullptr;
  const VisibleRows& range = Find(token);
  return range.token_begin() <= token && token < range.token_end() ? &range : nullptr;
}

LayerView MakeLayerView(const RetrieveRequest& request, const Sequence& sequence, std::pmr::memory_resource* arena) {
  LayerView view(arena);
  FillLayerView(request, sequence, arena, view);
  return view;
}

absl::StatusOr<MemoryView> MakeMemoryView(const RetrieveRequest& request, const Sequence& sequence, bool values,
                                          Executor& executor, std::pmr::memory_resource* arena) {
  MemoryView view(arena);
  FillLayerView(request, sequence, arena, view);
  const MemoryState& state = *view.snapshot.state;
  view.rows.reserve(2 * (state.sealed.size() + 1));
  for (const SegmentView& sealed : state.sealed) {
    AddVisibleRows(sealed.segment, sealed.first_token, sealed.rows, state, sequence.memory_begin, view.end, view.rows);
  }
  AddVisibleRows(state.tail, state.tail_first, view.snapshot.layer_ends[view.layer] - state.tail_first, state,
                 sequence.memory_begin, view.end, view.rows);
  MNEME_RETURN_IF_ERROR(RowLoader(request, sequence, values, view).LoadAll(executor));
  return view;
}

int64_t QueryPosition(const RetrieveRequest& request, const Sequence& sequence, int64_t view_end, int64_t query) {
  if (request.query_positions != nullptr) return request.query_positions[query];
  const int64_t queries = sequence.query_end - sequence.query_begin;
  const int64_t local = sequence.local_end - sequence.local_begin;
  return view_end + std::max<int64_t>(0, local - queries) + query - sequence.query_begin;
}

}  // namespace mneme
