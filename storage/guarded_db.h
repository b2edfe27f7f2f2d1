// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_GUARDED_DB_H_
#define MNEME_STORAGE_GUARDED_DB_H_

#include <atomic>
#include <string>
#include <vector>

#include "rocksdb/db.h"
#include "rocksdb/utilities/stackable_db.h"
#include "rocksdb/write_batch.h"

namespace mneme {

// A RocksDB database that survives exceptions within it. RocksDB has none of its own, so an allocation that fails
// unwinds it half way: a writer stays in the queue of writers, for which the next one waits for ever, or a reader's
// claim on a version of the database stays, on which the next read of the same thread ends the process. So the first
// exception makes the database broken: no call enters RocksDB any more, and it must never be closed (Leak).
//
// Only the calls that mneme makes are guarded. Every one of them reports a broken database as Aborted (kMemoryLimit).
class GuardedDb final : public rocksdb::StackableDB {
 public:
  // Owns `db`. Allocates nothing.
  explicit GuardedDb(rocksdb::DB* db) : StackableDB(db) {}
  // Requires: not broken, or Leak was called.
  ~GuardedDb() override = default;

  bool broken() const { return broken_.load(std::memory_order_relaxed); }
  // Lets go of the database without closing it.
  void Leak() { db_ = nullptr; }

  rocksdb::Status Put(const rocksdb::WriteOptions& options, rocksdb::ColumnFamilyHandle* family,
                      const rocksdb::Slice& key, const rocksdb::Slice& value) override;
  rocksdb::Status Write(const rocksdb::WriteOptions& options, rocksdb::WriteBatch* batch) override;
  rocksdb::Status DeleteRange(const rocksdb::WriteOptions& options, rocksdb::ColumnFamilyHandle* family,
                              const rocksdb::Slice& begin, const rocksdb::Slice& end) override;
  using rocksdb::StackableDB::Get;
  rocksdb::Status Get(const rocksdb::ReadOptions& options, rocksdb::ColumnFamilyHandle* family,
                      const rocksdb::Slice& key, rocksdb::PinnableSlice* value) override;
  using rocksdb::StackableDB::NewIterator;
  rocksdb::Iterator* NewIterator(const rocksdb::ReadOptions& options, rocksdb::ColumnFamilyHandle* family) override;
  using rocksdb::StackableDB::Flush;
  rocksdb::Status Flush(const rocksdb::FlushOptions& options, rocksdb::ColumnFamilyHandle* family) override;
  rocksdb::Status Flush(const rocksdb::FlushOptions& options,
                        const std::vector<rocksdb::ColumnFamilyHandle*>& families) override;
  rocksdb::Status FlushWAL(bool sync) override;
  using rocksdb::StackableDB::CompactRange;
  rocksdb::Status CompactRange(const rocksdb::CompactRangeOptions& options, rocksdb::ColumnFamilyHandle* family,
                               const rocksdb::Slice* begin, const rocksdb::Slice* end) override;
  using rocksdb::StackableDB::GetIntProperty;
  bool GetIntProperty(rocksdb::ColumnFamilyHandle* family, const rocksdb::Slice& property, uint64_t* value) override;
  rocksdb::Status VerifyChecksum() override;

 private:
  template <typename Call>
  rocksdb::Status Guard(const Call& call);

  std::atomic<bool> broken_{false};
};

// Makes room for `bytes` more in a batch, its records' own bytes apart. A batch that cannot grow within one of its own
// functions ends the process.
void Reserve(rocksdb::WriteBatch& batch, size_t bytes);

}  // namespace mneme

#endif  // MNEME_STORAGE_GUARDED_DB_H_
