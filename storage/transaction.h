// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_TRANSACTION_H_
#define MNEME_STORAGE_TRANSACTION_H_

#include <string>

#include "rocksdb/write_batch.h"

#include "storage/database_impl.h"

namespace mneme {

class TransactionImpl final : public Transaction {
 public:
  explicit TransactionImpl(DatabaseImpl* database) : database_(database) {}

  absl::Status PutChunk(SegmentId segment, const Column& column, int64_t chunk, absl::Span<const char> rows,
                        size_t row_bytes) override;
  absl::Status PutLog(SegmentId segment, int32_t layer, int64_t first_row, int64_t rows,
                      absl::Span<const char> bytes) override;
  absl::Status DeleteLogs(SegmentId segment, int64_t before_row) override;
  absl::Status PutAttachment(IndexId id, absl::string_view bytes) override;
  absl::Status PutManifest(const MemoryManifest& manifest) override;
  absl::Status DeleteManifest(absl::string_view name) override;
  absl::Status Commit(Durability durability) override;

 private:
  // Runs one step. An error that is not the caller's ends the transaction.
  template <typename Body>
  absl::Status Step(absl::string_view doing, const Body& body);
  absl::Status WriteChunks();

  DatabaseImpl* const database_;
  rocksdb::WriteBatch chunks_;  // of chunk_owner_, not yet given to RocksDB
  SegmentId chunk_owner_ = 0;
  bool wrote_chunks_ = false;
  bool wrote_attachments_ = false;
  uint64_t epoch_ = 0;          // of the database when the first chunk or attachment was written
  rocksdb::WriteBatch commit_;  // all that becomes visible at once
  bool ended_ = false;
};

}  // namespace mneme

#endif  // MNEME_STORAGE_TRANSACTION_H_
