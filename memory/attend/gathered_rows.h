// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_GATHERED_ROWS_H_
#define MNEME_MEMORY_ATTEND_GATHERED_ROWS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "base/parallel.h"
#include "index/top_k.h"
#include "memory/attend/memory_view.h"

namespace mneme {

// The keys or the values of the rows that a search retrieved. Rows that RAM holds stay where they are; the others are
// read from the database, each one once for all queries.
class GatheredRows {
 public:
  GatheredRows() = default;

  // kind: keys or values. top: [queries][query_heads], the result of a search of `view`.
  // Errors: DataLoss if rows are damaged.
  static absl::StatusOr<GatheredRows> Read(const MemoryView& view, const LayerCard& layer, RowKind kind, DType dtype,
                                           absl::Span<TopK> top, Executor& executor);

  // Returns: the encoded row (RowBytes(dtype, dim)) of a token that a query head of this KV head retrieved. `view` is
  // the one that Read got.
  const char* Row(const MemoryView& view, int64_t kv_head, int64_t token) const;

 private:
  // The rows of one KV head that were read.
  struct Head {
    std::vector<int64_t> tokens;  // ascending
    std::vector<char> rows;       // [tokens], encoded
  };

  absl::Status ReadHead(const MemoryView& view, const LayerCard& layer, int64_t kv_head, absl::Span<TopK> top);

  RowKind kind_ = RowKind::kValues;
  size_t row_bytes_ = 0;
  std::vector<Head> heads_;  // [kv_heads]; empty: RAM has all rows
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_GATHERED_ROWS_H_
