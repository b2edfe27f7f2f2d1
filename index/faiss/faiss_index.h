// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_FAISS_INDEX_H_
#define MNEME_INDEX_FAISS_FAISS_INDEX_H_

// Internal to index/: FAISS behind KeyIndex.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "index/key_index.h"

namespace mneme {

// How rows are coded inside a FAISS index.
enum class FaissCode : uint8_t { kFlat, kPq, kSq8, kSq6, kSq4, kSqF16 };

// A FAISS structure that mneme supports. Named kinds and factory strings are both resolved to a shape; no string
// reaches faiss::index_factory.
struct FaissShape {
  enum class Family : uint8_t { kFlat, kIvf, kHnsw } family = Family::kFlat;
  FaissCode code = FaissCode::kFlat;
  int32_t lists = 0;            // kIvf
  int32_t pq_bytes = 0;         // kPq
  int32_t degree = 0;           // kHnsw
  int32_t ef_construction = 0;  // kHnsw

  // A line of text that names the structure. Blobs with the same text are interchangeable.
  std::string Text() const;
};

// "Flat", "SQ8", "IVF<n>,Flat", "IVF<n>,PQ<m>", "IVF<n>,SQ8", "HNSW<m>", "HNSW<m>,Flat", "HNSW<m>,SQ8" (SQ: 8,
// 6, 4 or fp16).
// Errors: InvalidArgument for anything else.
absl::StatusOr<FaissShape> ParseFactory(absl::string_view factory);

// Returns: the shape for `spec`; zeros get defaults by the number of rows and dimensions.
// Errors: InvalidArgument if the shape cannot be built over these rows.
absl::StatusOr<FaissShape> ResolveShape(const IndexSpec& spec, int64_t rows, int64_t dim);

// As BuildKeyIndex and LoadKeyIndex, for keys that all differ.
absl::StatusOr<std::unique_ptr<KeyIndex>> BuildFaissIndex(const IndexSpec& spec, const float* keys, int64_t rows,
                                                          int64_t dim);
absl::StatusOr<std::unique_ptr<KeyIndex>> LoadFaissIndex(const IndexSpec& spec, absl::string_view blob, int64_t rows,
                                                         int64_t dim);

// Whether this build has `kind`. Errors: Unimplemented; the message says what is missing and names the kind that does
// the same on the CPU.
absl::Status CheckGpuBuiltIn(IndexKind kind);

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_FAISS_INDEX_H_
