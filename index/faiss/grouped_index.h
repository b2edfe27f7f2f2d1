// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_GROUPED_INDEX_H_
#define MNEME_INDEX_FAISS_GROUPED_INDEX_H_

// Internal to index/: an index over rows of which some have equal keys. FAISS indexes one row of each group of equal
// keys, because an HNSW graph over equal rows takes forty times as long to build and is not connected.

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "index/faiss/row_groups.h"
#include "index/key_index.h"

namespace mneme {

// keys: f32 [rows, dim]. Requires: the keys are finite, and some are equal: groups.groups() < groups.rows().
absl::StatusOr<std::unique_ptr<KeyIndex>> BuildGroupedIndex(const IndexSpec& spec, const float* keys, int64_t dim,
                                                            RowGroups groups);

// Whether the blob is of a grouped index, by its first bytes.
bool IsGroupedBlob(absl::string_view blob);

// Errors: as LoadKeyIndex.
absl::StatusOr<std::unique_ptr<KeyIndex>> LoadGroupedIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                           int64_t dim);

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_GROUPED_INDEX_H_
