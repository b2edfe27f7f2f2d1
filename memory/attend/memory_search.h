// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_MEMORY_SEARCH_H_
#define MNEME_MEMORY_ATTEND_MEMORY_SEARCH_H_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "base/mutex.h"
#include "base/parallel.h"
#include "memory/attend/index_search.h"
#include "memory/attend/search_plan.h"
#include "memory/attend/seeded_scan.h"
#include "memory/attend/shared_status.h"
#include "memory/seed_cache.h"

namespace mneme {

// The search of one sequence's memory, as a list of work items: for every (query, head) the top_k rows with the
// greatest logits. Prepare makes the list, RunItem runs one item, Finish ends the search.
class MemorySearch {
 public:
  // result: [queries][query_heads], lists from MakeEmptyResult; those of heads with top_k 0 stay empty. The containers
  // take their bytes from `arena`. Everything given outlives the object.
  MemorySearch(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
               absl::Span<TopK> result, std::pmr::memory_resource* arena);

  // Makes the query vectors and the work items. There are no items if there is nothing to search.
  // Errors: as FillSearchPlan.
  absl::Status Prepare(Executor& executor);

  size_t item_count() const { return items_.size(); }
  // Returns: the KV head whose query heads item `number` searches for. Several items may share one.
  int64_t KvHeadOf(size_t number) const { return items_[number].kv_head; }

  // Merges the item's rows into `result`. Thread-safe; each item runs once.
  void RunItem(size_t number);

  // Keeps the rows of the last query as seeds for the next search of the layer (SeedCache).
  // Requires: all items have run. Errors: DataLoss if rows are damaged.
  absl::Status Finish();

 private:
  // Searches for queries [query_begin, query_end) of the query heads that share one KV head, in a part of the memory:
  // the run, or rows [row_begin, row_end) of scan_ranges_, numbered through all ranges.
  struct Item {
    int64_t kv_head;
    int64_t query_begin;
    int64_t query_end;
    int64_t row_begin;
    int64_t row_end;
    const VisibleRun* run;  // null: a scan
  };

  // Sets runs_ and scan_ranges_.
  void DivideMemory();
  // width: how many threads take items.
  void MakeItems(int64_t width);
  void Merge(absl::Span<const int32_t> heads, absl::Span<const int64_t> queries, absl::Span<const TopK> top)
      ABSL_LOCKS_EXCLUDED(mutex_);

  SearchPlan plan_;
  SharedStatus errors_;
  std::pmr::vector<VisibleRun> runs_;
  std::pmr::vector<RowRange> scan_ranges_;  // the visible rows that no run covers
  int64_t scan_rows_ = 0;
  std::pmr::vector<Item> items_;
  bool seeded_ = false;  // whether scans use the seed cache
  SeedTokens seeds_;
  Mutex mutex_;
  const absl::Span<TopK> result_ ABSL_GUARDED_BY(mutex_);
};

// Returns: empty lists, [queries][query_heads] of one sequence, with room for what a search of `view` adds.
std::pmr::vector<TopK> MakeEmptyResult(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                                       std::pmr::memory_resource* arena = std::pmr::get_default_resource());

// Prepare, all items, Finish: for calls that run no other work items beside the search.
absl::Status SearchMemory(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                          Executor& executor, absl::Span<TopK> result);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_MEMORY_SEARCH_H_
