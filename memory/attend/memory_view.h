// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_MEMORY_VIEW_H_
#define MNEME_MEMORY_ATTEND_MEMORY_VIEW_H_

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <vector>

#include "absl/status/statusor.h"

#include "base/parallel.h"
#include "memory/attend/request.h"

namespace mneme {

// Rows [row_begin, row_end) of one segment or tail, all of them visible to a sequence.
struct VisibleRows {
  std::shared_ptr<Segment> segment = nullptr;
  std::shared_ptr<const LayerKeys> keys = nullptr;  // null: scans read codes, and single keys by Segment::ReadRows
  std::shared_ptr<const LayerCodes> codes = nullptr;
  std::shared_ptr<const LayerValues> values = nullptr;    // null: not needed, or read one by one (Segment::ReadRows)
  std::shared_ptr<const TokenColumns> columns = nullptr;  // rotary positions; null: each equals its token index
  int64_t first_token = 0;                                // token index of row 0
  int64_t row_begin = 0;
  int64_t row_end = 0;
  bool pinned = false;

  int64_t token_begin() const { return first_token + row_begin; }
  int64_t token_end() const { return first_token + row_end; }
};

// Which tokens a sequence sees of one layer of its memory. It is fixed for a call, whatever happens to the memory.
struct LayerView {
  explicit LayerView(std::pmr::memory_resource* arena) : snapshot{nullptr, std::pmr::vector<int64_t>(arena)} {}

  Snapshot snapshot;
  size_t layer = 0;  // its place in the card
  int64_t end = 0;   // one past the last visible token
};

// A LayerView and the rows of its tokens. The containers take their bytes from `arena`, which outlives the view.
struct MemoryView : LayerView {
  explicit MemoryView(std::pmr::memory_resource* arena = std::pmr::get_default_resource())
      : LayerView(arena), rows(arena) {}

  std::pmr::vector<VisibleRows> rows;  // ascending in tokens, disjoint

  int64_t RowCount() const;
  // Requires: `token` is visible. Returns: the entry of `rows` that holds it.
  const VisibleRows& Find(int64_t token) const;
  // Returns: the same for any token; null if it is not visible.
  const VisibleRows* FindVisible(int64_t token) const;
};

// Returns: what the sequence sees; its snapshot, or else the memory's present state, is kept in the view.
// Requires: the sequence has a memory.
LayerView MakeLayerView(const RetrieveRequest& request, const Sequence& sequence,
                        std::pmr::memory_resource* arena = std::pmr::get_default_resource());

// As MakeLayerView, and reads those codes and rows that a search needs and that RAM does not hold yet. values: whether
// the values are needed, too. Requires: the sequence has a memory. Errors: DataLoss if rows are damaged.
absl::StatusOr<MemoryView> MakeMemoryView(const RetrieveRequest& request, const Sequence& sequence, bool values,
                                          Executor& executor,
                                          std::pmr::memory_resource* arena = std::pmr::get_default_resource());

// Returns: the rotary position of query `query` of `sequence`, whose view ends at token `view_end`. Here alone a query
// is numbered in the batch, not in its sequence. Without RetrieveRequest::query_positions the first query stands right
// behind the memory and the local rows that precede it: view_end + max(0, local rows - queries) + the number in the
// sequence.
int64_t QueryPosition(const RetrieveRequest& request, const Sequence& sequence, int64_t view_end, int64_t query);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_MEMORY_VIEW_H_
