// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_MANIFEST_H_
#define MNEME_STORAGE_MANIFEST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/dtype.h"
#include "base/model_card.h"

namespace mneme {

using SegmentId = uint64_t;  // owner of rows; 0 is never used
using IndexId = uint64_t;    // owner of index blobs or of one attachment; 0 is never used

// What a memory was created with and keeps for life.
struct MemoryOptions {
  DType stored_dtype = DType::kF16;
  bool normalise_keys = false;      // keys are L2-normalised when appended, as in the paper
  bool keys_rotated = false;        // the host stores rotated keys ("as stored"); else unrotated ones
  int64_t max_tokens = 0;           // first in, first out beyond this; 0: unbounded
  int64_t pinned_tokens = 0;        // the first tokens, which eviction leaves alone
  int64_t segment_tokens = 4096;    // a tail of this many tokens is sealed; a multiple of kChunkRows
  std::string index_spec = "auto";  // auto, scan, flat, ivf, ivfpq, hnsw, or "faiss:<factory string>"

  bool operator==(const MemoryOptions&) const = default;
};

// A token range of a memory whose rows a segment owns: row r is token first_token + r. Forks and truncation
// shorten `rows` of a shared segment, they never rewrite it.
struct SegmentRef {
  SegmentId id = 0;
  int64_t first_token = 0;
  int64_t rows = 0;          // committed rows that belong to the memory
  int64_t chunked_rows = 0;  // rows [0, chunked_rows) lie in chunks, the others in log records
  bool sealed = false;

  bool operator==(const SegmentRef&) const = default;
};

// An index over the rows of tokens [first_token, first_token + tokens), one blob a layer and KV head.
struct IndexRef {
  IndexId id = 0;
  int64_t first_token = 0;
  int64_t tokens = 0;
  std::string spec;

  bool operator==(const IndexRef&) const = default;
};

// Bytes that the host keeps with a memory under a name. They describe its first `tokens` tokens (0: they depend on
// none), so a truncation below that drops them. Forks share the bytes.
struct AttachmentRef {
  std::string name;
  IndexId id = 0;
  int64_t tokens = 0;
  uint64_t bytes = 0;

  bool operator==(const AttachmentRef&) const = default;
};

// All that makes rows a memory. The record written last by a commit, and the commit itself.
struct MemoryManifest {
  std::string name;
  uint64_t generation = 0;  // grows by one with every commit of this memory
  ModelCard card;
  MemoryOptions options;
  bool has_positions = false;  // rotary positions differ from token indices and are stored
  bool has_token_ids = false;
  int64_t first_kept = 0;            // tokens [pinned_tokens, first_kept) are evicted
  std::vector<SegmentRef> segments;  // in token order, without gaps but for evicted tokens; the last may be unsealed
  std::vector<IndexRef> indexes;
  std::vector<AttachmentRef> attachments;  // names differ

  bool operator==(const MemoryManifest&) const = default;
};

// Versioned, checksummed encoding; docs/design/format.md has the grammar.
std::string EncodeManifest(const MemoryManifest& manifest);

// DataLoss if the bytes are damaged, FailedPrecondition if a newer mneme wrote them. Every count is bounded
// before anything is allocated.
absl::StatusOr<MemoryManifest> DecodeManifest(absl::string_view bytes);

}  // namespace mneme

#endif  // MNEME_STORAGE_MANIFEST_H_
