// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_REPORTED_ROWS_H_
#define MNEME_MEMORY_ATTEND_REPORTED_ROWS_H_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "base/parallel.h"
#include "memory/attend/gathered_rows.h"
#include "memory/attend/memory_view.h"
#include "memory/attend/request.h"
#include "memory/attend/search_plan.h"

namespace mneme {

// The rows of one sequence's memory that a call of Attend retrieved. They are found by the token indices that the call
// wrote to AttendRequest::retrieved_tokens; nothing is searched. Queries are numbered within the sequence.
class ReportedRows {
 public:
  // request: as of that call. Everything given outlives the object; its containers take their bytes from `arena`.
  // Requires: the sequence has a memory.
  ReportedRows(const AttendRequest& request, const Sequence& sequence, std::pmr::memory_resource* arena);
  ReportedRows(const ReportedRows&) = delete;
  ReportedRows& operator=(const ReportedRows&) = delete;

  // Checks the report against what the sequence sees now, and reads the rows.
  // Errors: InvalidArgument for a report that no call can have written, or whose stride had no room for all rows;
  // OutOfRange for a token that is evicted or not visible; DataLoss if rows are damaged; those of FillSearchPlan.
  absl::Status Read(Executor& executor);

  // The following require: Read.

  // Returns: best first.
  absl::Span<const int64_t> Tokens(int64_t query, int64_t head) const;
  int64_t most_tokens() const { return most_tokens_; }  // of any query and head
  const VisibleRows& Owner(int64_t token) const { return view_.Find(token); }
  const char* Key(int64_t kv_head, int64_t token) const { return keys_.Row(view_, kv_head, token); }
  const char* Value(int64_t kv_head, int64_t token) const { return values_.Row(view_, kv_head, token); }
  // The query vectors, and how they rank rows.
  const SearchPlan& plan() const { return plan_; }

 private:
  // Returns: the place of a (query, head) in the batch: its query in the batch * query_heads + head.
  int64_t SlotOf(int64_t query, int64_t head) const;
  // Checks the report of one slot of a head with this top_k, and sets *count to the number of its tokens.
  absl::Status CheckSlot(int64_t slot, int64_t top_k, int64_t* count);
  // at: place in retrieved_tokens.
  absl::Status CheckToken(int64_t at) const;

  const AttendRequest& request_;
  const Sequence& sequence_;
  MemoryView view_;
  SearchPlan plan_;
  SharedStatus errors_;
  std::pmr::vector<TopK> top_;        // [queries][query_heads]: the tokens, as GatheredRows takes them
  std::pmr::vector<int64_t> counts_;  // [queries][query_heads]
  std::pmr::vector<int64_t> sorted_;  // CheckSlot's
  GatheredRows keys_, values_;
  int64_t visible_rows_ = 0;
  int64_t most_tokens_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_REPORTED_ROWS_H_
