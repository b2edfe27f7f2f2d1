// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_RETRIEVE_H_
#define MNEME_MEMORY_ATTEND_RETRIEVE_H_

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "index/scan/scan.h"
#include "memory/attend/attend.h"

namespace mneme {

// Rows [row_begin, row_end) of one segment or tail that a sequence may see.
struct VisibleRows {
  std::shared_ptr<Segment> segment;
  std::shared_ptr<const LayerKeys> keys;  // null: read one by one, where codes do not do (Segment::ReadRows)
  std::shared_ptr<const LayerCodes> codes;
  std::shared_ptr<const LayerValues> values;    // null: not asked for, or read one by one
  std::shared_ptr<const TokenColumns> columns;  // only if the memory has rotary positions of its own
  int64_t first_token = 0;                      // of row 0
  int64_t row_begin = 0;
  int64_t row_end = 0;
  bool pinned = false;

  int64_t token_begin() const { return first_token + row_begin; }
  int64_t token_end() const { return first_token + row_end; }
};

// What one sequence sees of its memory in one layer, fixed for the call. It lies in `memory`, which outlives it.
struct MemoryView {
  explicit MemoryView(std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : snapshot{nullptr, std::pmr::vector<int64_t>(memory)}, rows(memory) {}

  Snapshot snapshot;
  size_t layer = 0;
  int64_t end = 0;                     // the default position of a query right behind the memory
  std::pmr::vector<VisibleRows> rows;  // ascending in tokens, disjoint

  int64_t RowCount() const;
  // The piece of `rows` that holds `token`, which is visible.
  const VisibleRows& Find(int64_t token) const;
  // The same for any token; null if it is not visible.
  const VisibleRows* FindVisible(int64_t token) const;
};

// What `sequence` sees of its memory, which it must have; without its rows.
MemoryView LookAt(const RetrieveRequest& request, const Sequence& sequence,
                  std::pmr::memory_resource* memory = std::pmr::get_default_resource());

// The same with its rows: reads what a search needs and is not in memory yet. `values`: whether values are needed.
absl::StatusOr<MemoryView> ViewMemory(const RetrieveRequest& request, const Sequence& sequence, bool values,
                                      Executor& executor,
                                      std::pmr::memory_resource* memory = std::pmr::get_default_resource());

// [queries][query_heads] of one sequence, with nothing in them yet but room for what Retrieve finds.
std::pmr::vector<TopK> NothingFound(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                                    std::pmr::memory_resource* memory = std::pmr::get_default_resource());

// What is done beside a search, by the same threads: while one of them waits for memory another one computes (see
// MixedTasks).
struct Beside {
  // Tasks that need nothing of what is found.
  size_t tasks;
  absl::FunctionRef<void(size_t task)> run;
  // All rows of the KV head's query heads are in the result. Called by the thread that found the last of them, once for
  // every KV head.
  absl::FunctionRef<void(int64_t kv_head)> found;
};

// The top rows of every (query, head) of one sequence, into what NothingFound made; heads with top_k 0 get nothing.
// beside: null: nothing. Where there is nothing to look for (no query, no row, no head that wants some), none of it is
// done, either.
absl::Status Retrieve(const RetrieveRequest& request, const Sequence& sequence, const MemoryView& view,
                      Executor& executor, absl::Span<TopK> result, const Beside* beside = nullptr);

// Position of query `query` (its number in the batch) of `sequence`, whose view of its memory ends at token `view_end`.
int64_t QueryPosition(const RetrieveRequest& request, const Sequence& sequence, int64_t view_end, int64_t query);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_RETRIEVE_H_
