// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_EXCHANGE_IMPORT_MEMORY_H_
#define MNEME_MEMORY_EXCHANGE_IMPORT_MEMORY_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "base/content_hash.h"
#include "memory/exchange/exchange_rows.h"
#include "memory/exchange/memory_contents.h"
#include "memory/exchange/tensor_reader.h"
#include "memory/progress.h"
#include "memory/segment/segment_rows.h"
#include "memory/store_context.h"
#include "storage/database.h"

namespace mneme {

// Brings an exported memory into a store. Rows and attachments go into segments that no manifest names; the commit of
// manifest() makes them a memory, so a process that is killed before leaves orphans, which the next writer deletes. An
// import that is destroyed before Committed() deletes them itself. Belongs to one thread.
//
// The file may be anybody's: all of it is checked. Only rows and attachments are taken, never an index or code.
class MemoryImport {
 public:
  // Reads what the headers of `path` say.
  // Errors: those of TensorReader and ParseMetadata; InvalidArgument for tensors that do not fit the memory.
  static absl::StatusOr<std::unique_ptr<MemoryImport>> Open(StoreContext* store, const std::string& path);
  ~MemoryImport();

  const MemoryContents& contents() const { return contents_; }
  int64_t bytes() const { return bytes_; }  // of all tensors

  // Writes rows and attachments. Holds one layer of a segment in RAM. `progress` counts bytes.
  // Errors: InvalidArgument for numbers that cannot be stored; DataLoss if a checksum differs; those of Transaction and
  // TensorReader; Cancelled.
  absl::Status Write(const Progress& progress);

  // What Write has written, as a memory of this name. Requires: Write has returned OK.
  MemoryManifest ManifestOf(const std::string& name) const;
  Transaction& transaction() { return *transaction_; }
  // To be called when the manifest is committed.
  void Committed() noexcept { committed_ = true; }

 private:
  MemoryImport(StoreContext* store, std::unique_ptr<TensorReader> reader)
      : store_(store), reader_(std::move(reader)), transaction_(store->database().Begin()) {}
  absl::Status CheckTensors() const;
  // The next n rows of the file's tensors become a segment whose first token is `first_token`.
  absl::Status WriteSegment(int64_t n, int64_t first_token);
  absl::Status WriteTokenColumns(SegmentId segment, int64_t n, int64_t first_token);
  absl::Status WriteKeys(SegmentId segment, const LayerCard& layer, int64_t n);
  absl::Status WriteCodes(SegmentId segment, const LayerCard& layer, const LayerKeys& keys, int64_t n);
  absl::Status WriteValues(SegmentId segment, const LayerCard& layer, int64_t n);
  absl::Status WriteAttachments();
  // Reads the next `rows.size()` tokens of a tensor, and with kI8 of its scales.
  absl::Status ReadRows(const std::string& tensor, const std::string& scales, ExchangeRows& rows);
  // Reads a tensor's next bytes.
  absl::Status ReadNext(const std::string& tensor, absl::Span<char> out);
  absl::Status CompareChecksums() const;

  struct Reading {
    uint64_t bytes = 0;
    ContentHash hash;
  };

  StoreContext* const store_;
  const std::unique_ptr<TensorReader> reader_;
  MemoryContents contents_;
  TensorChecksums checksums_;  // as the file says; empty: it says nothing
  int64_t bytes_ = 0;

  const std::unique_ptr<Transaction> transaction_;
  std::map<std::string, Reading> read_;  // by tensor
  int64_t bytes_read_ = 0;
  const Progress* progress_ = nullptr;  // during Write
  std::vector<SegmentRef> segments_;
  std::vector<AttachmentRef> attachments_;
  bool has_positions_ = false;
  bool committed_ = false;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_EXCHANGE_IMPORT_MEMORY_H_
