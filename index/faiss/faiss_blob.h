// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_FAISS_FAISS_BLOB_H_
#define MNEME_INDEX_FAISS_FAISS_BLOB_H_

// Internal to index/: how a FAISS structure is written and read. Kinds on a GPU use the same blobs.

#include <faiss/Index.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "index/faiss/faiss_structure.h"

namespace mneme {

// Serializes a structure on the host.
absl::StatusOr<std::string> WriteFaissBlob(const FaissShape& shape, const KeyCenter& center, const faiss::Index& index);

struct FaissBlob {
  KeyCenter center;
  std::unique_ptr<faiss::Index> index;  // on the host
};

// Errors: FailedPrecondition if the header names another shape, dimension, row count or version; DataLoss if the blob
// is damaged or holds something else than its header says.
absl::StatusOr<FaissBlob> ReadFaissBlob(const FaissShape& shape, absl::string_view blob, int64_t rows, int64_t dim);

}  // namespace mneme

#endif  // MNEME_INDEX_FAISS_FAISS_BLOB_H_
