// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_GATHERED_ROWS_H_
#define MNEME_MEMORY_ATTEND_GATHERED_ROWS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "base/parallel.h"
#include "memory/attend/retrieve.h"

namespace mneme {

// Keys or values of rows that a search found. Those that are not in memory are read once, however many queries want
// them.
class GatheredRows {
 public:
  GatheredRows() = default;

  // kind: keys or values, of which the view has what is in memory. top: [queries][query_heads], as Retrieve left it.
  // DataLoss if rows are damaged.
  static absl::StatusOr<GatheredRows> Read(const MemoryView& view, const LayerCard& layer, RowKind kind, DType dtype,
                                           absl::Span<TopK> top, Executor& executor);

  // The encoded row of a token that was found for a query head of this KV head. The view must live.
  const char* Row(const MemoryView& view, int64_t kv_head, int64_t token) const;

 private:
  // What was read for one KV head.
  struct Head {
    std::vector<int64_t> tokens;  // ascending
    std::vector<char> rows;       // theirs
  };

  absl::Status ReadHead(const MemoryView& view, const LayerCard& layer, int64_t kv_head, absl::Span<TopK> top);

  RowKind kind_ = RowKind::kValues;
  size_t row_bytes_ = 0;
  std::vector<Head> heads_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_GATHERED_ROWS_H_
