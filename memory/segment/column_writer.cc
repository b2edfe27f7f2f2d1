// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/column_writer.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/types/span.h"

#include "base/status.h"

namespace mneme {

void CopyRowBytes(RowSource source, int64_t begin, int64_t n, size_t row_bytes, char* out) {
  for (const int64_t end = begin + n; begin < end;) {
    int64_t contiguous;
    const char* from = source(begin, &contiguous);
    const int64_t count = std::min(contiguous, end - begin);
    std::memcpy(out, from, static_cast<size_t>(count) * row_bytes);
    out += static_cast<size_t>(count) * row_bytes;
    begin += count;
  }
}

absl::Status WriteColumn(Transaction& transaction, SegmentId segment, const Column& column, int64_t begin, int64_t end,
                         size_t row_bytes, RowSource source) {
  std::vector<char> buffer;
  for (int64_t row = begin; row < end; row += kChunkRows) {
    const int64_t n = std::min(kChunkRows, end - row);
    const size_t chunk_bytes = static_cast<size_t>(n) * row_bytes;
    int64_t contiguous;
    const char* chunk = source(row, &contiguous);
    if (contiguous < n) {
      buffer.resize(chunk_bytes);
      CopyRowBytes(source, row, n, row_bytes, buffer.data());
      chunk = buffer.data();
    }
    MNEME_RETURN_IF_ERROR(
        transaction.PutChunk(segment, column, row / kChunkRows, absl::MakeSpan(chunk, chunk_bytes), row_bytes));
  }
  return absl::OkStatus();
}

}  // namespace mneme
