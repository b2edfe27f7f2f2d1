// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_CODE_COLUMNS_H_
#define MNEME_MEMORY_SEGMENT_CODE_COLUMNS_H_

#include <cstdint>

#include "absl/status/status.h"

#include "base/model_card.h"
#include "index/scan/key_codes.h"
#include "memory/segment/segment.h"
#include "storage/database.h"

namespace mneme {

// Codes of a sealed segment's keys in the database, so that a search after a restart need not read the keys to make
// them again. Disposable: what is missing or damaged is made again from the keys.

// Whether the keys of an owner of so many rows are searched by codes: for fewer these cost more than they spare.
bool IsCoded(int64_t rows);

// Rows of so many that have codes.
int64_t RowsWithCodes(int64_t rows);

// Bytes that the codes of `rows` rows take on disk: those of one head, of whose kind `codes` is, and of all layers.
int64_t HeadCodeBytes(const KeyCodes& codes, int64_t rows);
int64_t CodeBytes(const ModelCard& card, int64_t rows);

// Writes the codes of the first `rows` rows of all layers, made where they are not there yet, of a segment that is
// about to be sealed with so many rows. Does nothing for a segment that is not coded.
absl::Status WriteCodes(Transaction& transaction, const ModelCard& card, Segment& segment, int64_t rows);

// The same for one head, whose codes are `codes`.
absl::Status WriteHeadCodes(Transaction& transaction, SegmentId segment, int32_t layer, int32_t head, int64_t rows,
                            const KeyCodes& codes);

// Brings the codes of a segment's first `rows` rows into `codes`, which has none. NotFound if there are none, DataLoss
// if they are damaged.
absl::Status ReadCodes(Database& database, SegmentId segment, int32_t layer, int32_t head, int64_t rows,
                       KeyCodes& codes);

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_CODE_COLUMNS_H_
