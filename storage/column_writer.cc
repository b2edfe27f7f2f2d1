// SPDX-License-Identifier: Apache-2.0
#include "storage/column_writer.h"

#include <limits>
#include <string>

#include "storage/keys.h"
#include "storage/rocks.h"

namespace mneme {
namespace {

std::string EndKey(uint64_t last) {
  return last == std::numeric_limits<uint64_t>::max() ? std::string(9, '\xff') : OwnerKey(last + 1);
}

}  // namespace

rocksdb::Status ColumnWriter::Write(uint64_t owner, rocksdb::WriteBatch* batch) {
  const std::lock_guard lock(mutex_);
  if (owner != owner_) {
    // A flush job takes all memtables that wait; so the other owner's must be in files before ours begin.
    if (rocksdb::Status status = FinishFlush(); !status.ok()) return status;
    owner_ = owner;
  }
  const std::string marker = OwnerKey(owner);
  Reserve(*batch, marker.size());
  if (rocksdb::Status status = batch->Put(family_, ToSlice(marker), rocksdb::Slice()); !status.ok()) return status;
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  if (rocksdb::Status status = db_->Write(options, batch); !status.ok()) return status;
  unflushed_bytes_ += batch->GetDataSize();
  unflushed_owner_.store(owner, std::memory_order_relaxed);
  return unflushed_bytes_ >= kFlushBytes ? BeginFlush() : rocksdb::Status::OK();
}

rocksdb::Status ColumnWriter::Flush() {
  const std::lock_guard lock(mutex_);
  return FinishFlush();
}

rocksdb::Status ColumnWriter::Drop(const std::vector<Range>& ranges) {
  if (ranges.empty()) return rocksdb::Status::OK();
  {
    const std::lock_guard lock(mutex_);
    rocksdb::WriteOptions options;
    options.disableWAL = true;
    rocksdb::WriteBatch batch;
    for (const auto& [first, last] : ranges) {
      Reserve(batch, OwnerKey(first).size() + EndKey(last).size());
      const rocksdb::Status status = batch.DeleteRange(family_, ToSlice(OwnerKey(first)), ToSlice(EndKey(last)));
      if (!status.ok()) return status;
    }
    if (rocksdb::Status status = db_->Write(options, &batch); !status.ok()) return status;
    ++unflushed_bytes_;
    if (rocksdb::Status status = FinishFlush(); !status.ok()) return status;
  }
  // Each compaction costs files and syncs; many ranges become one, over what lies between them, too.
  constexpr size_t kFewRanges = 4;
  if (ranges.size() > kFewRanges) return Compact(ranges.front().first, ranges.back().second);
  for (const auto& [first, last] : ranges) {
    if (rocksdb::Status status = Compact(first, last); !status.ok()) return status;
  }
  return rocksdb::Status::OK();
}

rocksdb::Status ColumnWriter::Compact(uint64_t first, uint64_t last) {
  const std::string begin = OwnerKey(first), end = EndKey(last);
  const rocksdb::Slice begin_slice = ToSlice(begin), end_slice = ToSlice(end);
  // The tree learns that the blobs are garbage only when their keys are compacted away; a blob file that is all
  // garbage is deleted.
  rocksdb::CompactRangeOptions compact;
  compact.exclusive_manual_compaction = false;
  compact.allow_write_stall = true;
  compact.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
  return db_->CompactRange(compact, family_, &begin_slice, &end_slice);
}

rocksdb::Status ColumnWriter::BeginFlush() {
  rocksdb::FlushOptions options;
  options.wait = false;
  options.allow_write_stall = false;
  const rocksdb::Status status = db_->Flush(options, family_);
  if (status.ok()) {
    unflushed_bytes_ = 0;
    flushing_ = true;
  }
  return status;
}

rocksdb::Status ColumnWriter::FinishFlush() {
  if (unflushed_bytes_ == 0 && !flushing_) return rocksdb::Status::OK();
  rocksdb::FlushOptions options;
  options.wait = true;
  options.allow_write_stall = true;
  if (rocksdb::Status status = db_->Flush(options, family_); !status.ok()) return status;
  // After a full disk and RocksDB's recovery from it, a flush was seen to report success with a memtable left behind.
  // What has no log must not be acknowledged before it is in a file, so look.
  uint64_t active = 0, immutable = 0;
  if (!db_->GetIntProperty(family_, rocksdb::DB::Properties::kNumEntriesActiveMemTable, &active) ||
      !db_->GetIntProperty(family_, rocksdb::DB::Properties::kNumImmutableMemTable, &immutable)) {
    return rocksdb::Status::Incomplete("cannot tell whether everything is flushed");
  }
  if (active + immutable > 0) return rocksdb::Status::Incomplete("rows are not flushed after an earlier failure");
  unflushed_bytes_ = 0;
  flushing_ = false;
  unflushed_owner_.store(0, std::memory_order_relaxed);
  return rocksdb::Status::OK();
}

}  // namespace mneme
