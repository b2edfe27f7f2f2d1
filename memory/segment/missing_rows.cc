// SPDX-License-Identifier: Apache-2.0
#include "memory/segment/missing_rows.h"

#include <vector>

#include "base/status.h"

namespace mneme {

absl::Status ReadMissingRows(size_t layer, int64_t kv_head, RowKind kind, absl::Span<const MissingRow> missing,
                             size_t row_bytes, absl::Span<char> out) {
  const auto head = static_cast<int32_t>(kv_head);
  std::vector<int64_t> rows;
  for (const MissingRow& row : missing) rows.push_back(row.row);
  const auto for_each_segment = [&](const auto& visit) -> absl::Status {
    for (size_t first = 0, end; first < missing.size(); first = end) {
      for (end = first; end < missing.size() && missing[end].segment == missing[first].segment;) ++end;
      MNEME_RETURN_IF_ERROR(visit(*missing[first].segment, first, end - first));
    }
    return absl::OkStatus();
  };
  MNEME_RETURN_IF_ERROR(for_each_segment([&](Segment& segment, size_t first, size_t n) {
    segment.PrefetchRows(layer, head, kind, absl::MakeConstSpan(rows).subspan(first, n));
    return absl::OkStatus();
  }));
  return for_each_segment([&](Segment& segment, size_t first, size_t n) {
    return segment.ReadRows(layer, head, kind, absl::MakeConstSpan(rows).subspan(first, n),
                            out.subspan(first * row_bytes, n * row_bytes));
  });
}

}  // namespace mneme
