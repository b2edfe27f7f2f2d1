// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_COLUMN_WRITER_H_
#define MNEME_STORAGE_COLUMN_WRITER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "rocksdb/db.h"
#include "rocksdb/write_batch.h"

namespace mneme {

// Writes large values into one column family outside the write-ahead log: each byte goes to disk once, with the
// flush. Values of different owners (segments, indices) go to different files, so that dropping an owner frees
// whole blob files and nothing has to be moved. Thread-safe.
class ColumnWriter {
 public:
  // At most about this much lies in memory unflushed before a flush is begun. Two flushes run at a time
  // (MakeDbOptions): half of their time are RocksDB's checksums, so a commit of some MB is done sooner in two or three
  // pieces, which are flushed while the next one is being written; in more the files' own cost eats that up.
  static constexpr size_t kFlushBytes = size_t{5} << 20;

  ColumnWriter(rocksdb::DB* db, rocksdb::ColumnFamilyHandle* family) : db_(db), family_(family) {}

  // Applies `batch`, whose keys all belong to `owner`, and with it the owner's marker: a key without a value, before
  // all its other keys, by which owners are listed without reading their values. Not durable yet.
  rocksdb::Status Write(uint64_t owner, rocksdb::WriteBatch* batch);

  // Whether a value of `owner` would not make another's be flushed first. Owners who write at once have a file for each
  // turn, so whoever writes out of turn should write much.
  bool InTurn(uint64_t owner) const {
    const uint64_t unflushed = unflushed_owner_.load(std::memory_order_relaxed);
    return unflushed == 0 || unflushed == owner;
  }

  // Makes all that was written durable. After it returns OK, files hold everything written before the call. Incomplete:
  // RocksDB cannot, though it reported success, until the database is opened again.
  rocksdb::Status Flush();

  // Deletes owner ids [first, last] and gives back their disk.
  rocksdb::Status Drop(uint64_t first, uint64_t last) { return Drop({{first, last}}); }
  // The same for several ranges, ascending: one flush for all, and few compactions.
  using Range = std::pair<uint64_t, uint64_t>;
  rocksdb::Status Drop(const std::vector<Range>& ranges);

 private:
  rocksdb::Status Compact(uint64_t first, uint64_t last);
  // Both are called with mutex_ held.
  rocksdb::Status BeginFlush();
  rocksdb::Status FinishFlush();

  rocksdb::DB* const db_;
  rocksdb::ColumnFamilyHandle* const family_;
  // std:: because ThreadSanitizer knows it; distributions' Abseil is not built for that.
  std::mutex mutex_;                          // guards what follows
  uint64_t owner_ = 0;                        // of the values that may not be in files yet
  size_t unflushed_bytes_ = 0;                // no flush has begun for
  bool flushing_ = false;                     // a flush was begun and not waited for
  std::atomic<uint64_t> unflushed_owner_{0};  // owner_, or 0 if all is in files; read without mutex_
};

}  // namespace mneme

#endif  // MNEME_STORAGE_COLUMN_WRITER_H_
