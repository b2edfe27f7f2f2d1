// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_CODE_COLUMNS_H_
#define MNEME_MEMORY_SEGMENT_CODE_COLUMNS_H_

#include <cstdint>

#include "absl/status/status.h"

#include "base/model_card.h"
#include "index/scan/key_codes.h"
#include "storage/database.h"

namespace mneme {

// Search codes of a sealed segment on disk. With them, a search after a restart need not read the keys. They are
// disposable: missing or damaged codes are made again from the keys.

// Returns: whether a segment of `rows` rows is searched by codes. Fewer rows are cheaper to search by their keys.
bool IsCoded(int64_t rows);

// Returns: how many of `rows` rows have codes (whole blocks only).
int64_t RowsWithCodes(int64_t rows);

// Returns: the bytes on disk of the codes of `rows` rows, for one head (`codes` gives the sizes of its blocks) and for
// all layers of a card.
int64_t HeadCodeBytes(const KeyCodes& codes, int64_t rows);
int64_t CodeBytes(const ModelCard& card, int64_t rows);

// Writes the codes of the first `rows` rows of one head. Does nothing if a segment of `rows` rows is not coded.
// Requires: `codes` covers RowsWithCodes(rows).
absl::Status WriteHeadCodes(Transaction& transaction, SegmentId segment, int32_t layer, int32_t head, int64_t rows,
                            const KeyCodes& codes);

// Reads the codes of the first `rows` rows of one head into `codes`.
// Requires: `codes` is empty.
// Errors: NotFound if the database has no such codes, DataLoss if they are damaged.
absl::Status ReadHeadCodes(Database& database, SegmentId segment, int32_t layer, int32_t head, int64_t rows,
                           KeyCodes& codes);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_CODE_COLUMNS_H_
