// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/memory_search.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/scratch.h"
#include "base/status.h"

namespace mneme {
namespace {

// A work item scans at least this many rows: handing out a smaller one costs more time than another thread saves.
constexpr int64_t kFewestRowsPerItem = 2048;
// Query tokens of one work item. Each load of a key serves all of them, and the lists of their best rows still fit into
// the second-level cache.
constexpr int64_t kQueriesPerItem = 16;
// Ranking the seeds first takes longer than scanning fewer rows than this.
constexpr int64_t kFewestSeededRows = 1024;

// Adds to `rest` what the token ranges of `runs` (ascending) leave of `rows`.
void AddUncovered(const VisibleRows& rows, absl::Span<const VisibleRun> runs, std::pmr::vector<RowRange>& rest) {
  int64_t token = rows.token_begin();
  const auto add_up_to = [&](int64_t end) {
    if (token < end) rest.push_back({&rows, token - rows.first_token, end - rows.first_token});
  };
  for (const VisibleRun& run : runs) {
    if (run.token_end <= token || run.token_begin >= rows.token_end()) continue;
    add_up_to(std::min(run.token_begin, rows.token_end()));
    token = std::max(token, std::min(run.token_end, rows.token_end()));
  }
  add_up_to(rows.token_end());
}

}  // namespace

MemorySearch::MemorySearch(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                           absl::Span<TopK> result, std::pmr::memory_resource* arena)
    : plan_(arena), runs_(arena), scan_ranges_(arena), items_(arena), seeds_(arena), result_(result) {
  plan_.request = &request;
  plan_.sequence = &sequence;
  plan_.view = &view;
  plan_.errors = &errors_;
}

absl::Status MemorySearch::Prepare(Executor& executor) {
  MNEME_RETURN_IF_ERROR(FillSearchPlan(plan_, executor));
  if (plan_.heads.empty()) return absl::OkStatus();
  DivideMemory();
  MakeItems(static_cast<int64_t>(executor.Width()));
  // An approximate index may give only rows below the seeds' floor, so its searches have no seeds. With kClamped near
  // rows are scored by a query rotated for each row, and SeedRows knows one query vector only.
  seeded_ = runs_.empty() && plan_.request->policy != PositionPolicy::kClamped && scan_rows_ >= kFewestSeededRows;
  if (seeded_) plan_.sequence->memory->seed_cache().Get(plan_.view->layer, &seeds_);
  return absl::OkStatus();
}

void MemorySearch::DivideMemory() {
  const MemoryView& view = *plan_.view;
  const MemoryState& state = *view.snapshot.state;
  // An index ranks keys as they are stored, so it cannot serve kClamped.
  if (plan_.request->policy != PositionPolicy::kClamped) {
    for (const auto& run : state.runs) {
      const int64_t begin =
          std::max({run->first_token(), plan_.sequence->memory_begin, state.pinned_tokens, state.first_kept});
      const int64_t end = std::min(run->end(), view.end);
      if (begin < end) runs_.push_back({run, begin, end});
    }
  }
  scan_ranges_.reserve(view.rows.size());
  for (const VisibleRows& rows : view.rows) AddUncovered(rows, runs_, scan_ranges_);
  for (const RowRange& range : scan_ranges_) scan_rows_ += range.row_end - range.row_begin;
}

// Exact kinds give the same result for every division into items.
void MemorySearch::MakeItems(int64_t width) {
  const int64_t kv_heads = plan_.request->layer.kv_heads;
  const int64_t query_tiles = (plan_.queries + kQueriesPerItem - 1) / kQueriesPerItem;
  // About two items a thread.
  const int64_t cuts = std::max<int64_t>(1, (2 * width - 1) / std::max<int64_t>(1, kv_heads * query_tiles) + 1);
  const int64_t rows_per_item = width == 1 ? std::numeric_limits<int64_t>::max() / 2
                                           : std::max(kFewestRowsPerItem, (scan_rows_ + cuts - 1) / cuts);
  const int64_t scans = (scan_rows_ + rows_per_item - 1) / rows_per_item;
  items_.reserve(static_cast<size_t>(kv_heads * query_tiles) * (static_cast<size_t>(scans) + runs_.size()));
  for (int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
    for (int64_t query = 0; query < plan_.queries; query += kQueriesPerItem) {
      const int64_t query_end = std::min(plan_.queries, query + kQueriesPerItem);
      for (int64_t row = 0; row < scan_rows_; row += rows_per_item) {
        items_.push_back({kv_head, query, query_end, row, std::min(scan_rows_, row + rows_per_item), nullptr});
      }
      for (const VisibleRun& run : runs_) items_.push_back({kv_head, query, query_end, 0, 0, &run});
    }
  }
}

void MemorySearch::RunItem(size_t number) {
  const Item& item = items_[number];
  const absl::Span<const int32_t> heads = plan_.HeadsOf(item.kv_head);
  if (heads.empty()) return;
  Scratch scratch;
  if (item.run == nullptr) {
    const SeededScan::Part part = {.kv_head = item.kv_head,
                                   .heads = heads,
                                   .query_begin = item.query_begin,
                                   .query_end = item.query_end,
                                   .ranges = scan_ranges_,
                                   .row_begin = item.row_begin,
                                   .row_end = item.row_end};
    const auto merge = [&](absl::Span<const int64_t> queries, absl::Span<const TopK> top) {
      Merge(heads, queries, top);
    };
    SeededScan scan(plan_, part, merge, &scratch);
    if (seeded_) {
      scan.Run(seeds_);
    } else {
      scan.RunUnseeded();
    }
    return;
  }
  std::pmr::vector<int64_t> queries(static_cast<size_t>(item.query_end - item.query_begin), &scratch);
  std::iota(queries.begin(), queries.end(), item.query_begin);
  std::pmr::vector<TopK> top =
      MakeEmptyTopK(*plan_.request, heads, queries.size(), item.run->token_end - item.run->token_begin, &scratch);
  errors_.Update(SearchIndex(plan_, *item.run, item.kv_head, heads, item.query_begin, item.query_end, top.data()));
  Merge(heads, queries, top);
}

void MemorySearch::Merge(absl::Span<const int32_t> heads, absl::Span<const int64_t> queries,
                         absl::Span<const TopK> top) {
  const int64_t query_heads = plan_.request->layer.query_heads;
  MutexLock lock(&mutex_);
  for (size_t g = 0; g < heads.size(); ++g) {
    for (size_t i = 0; i < queries.size(); ++i) {
      result_[static_cast<size_t>(queries[i] * query_heads + heads[g])].Merge(top[g * queries.size() + i]);
    }
  }
}

absl::Status MemorySearch::Finish() {
  MNEME_RETURN_IF_ERROR(errors_.Get());
  if (!seeded_) return absl::OkStatus();
  MutexLock lock(&mutex_);
  seeds_.tokens.clear();
  seeds_.ends.clear();
  for (TopK& best : result_.last(static_cast<size_t>(plan_.request->layer.query_heads))) {
    for (const Scored& row : best.Sorted()) seeds_.tokens.push_back(row.index);
    seeds_.ends.push_back(seeds_.tokens.size());
  }
  plan_.sequence->memory->seed_cache().Set(plan_.view->layer, seeds_);
  return absl::OkStatus();
}

std::pmr::vector<TopK> MakeEmptyResult(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                                       std::pmr::memory_resource* arena) {
  const int64_t queries = sequence.query_end - sequence.query_begin;
  const int64_t rows = view.RowCount();
  std::pmr::vector<TopK> top(arena);
  top.reserve(static_cast<size_t>(queries) * request.heads.size());
  for (int64_t query = 0; query < queries; ++query) {
    for (const HeadRule& rule : request.heads) top.emplace_back(rule.top_k, rows, arena);
  }
  return top;
}

absl::Status SearchMemory(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                          Executor& executor, absl::Span<TopK> result) {
  Scratch scratch;
  MemorySearch search(request, sequence, view, result, &scratch);
  MNEME_RETURN_IF_ERROR(search.Prepare(executor));
  executor.ParallelFor(search.item_count(), [&](size_t number) { search.RunItem(number); });
  return search.Finish();
}

}  // namespace mneme
