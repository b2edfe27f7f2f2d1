// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_REORDERED_ROWS_H_
#define MNEME_INDEX_SCAN_REORDERED_ROWS_H_

#include <cstdint>

#include "absl/types/span.h"

#include "index/scan/key_codes.h"

namespace mneme {

// Blocks [begin, end) of some KeyCodes, all of one chunk.
struct BlockRange {
  int64_t begin;
  int64_t end;
};

inline int64_t RowsOf(absl::Span<const BlockRange> blocks) {
  int64_t count = 0;
  for (const BlockRange& range : blocks) count += range.end - range.begin;
  return count * KeyCodes::kBlockRows;
}

// Codes of rows in another order than the rows' own, some blocks of which are to be scanned. Place p of `codes` holds
// the code of row row_numbers[p]; -1: of no row.
struct ReorderedRows {
  const KeyCodes* codes;
  const int32_t* row_numbers;           // [codes->rows()]
  absl::Span<const BlockRange> blocks;  // ascending, disjoint
  int64_t row_begin;                    // other rows than [row_begin, row_end) are left out
  int64_t row_end;
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_REORDERED_ROWS_H_
