// SPDX-License-Identifier: Apache-2.0
#include "storage/guarded_db.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "rocksdb/iterator.h"

namespace mneme {
namespace {

// Runs `call`, which returns a rocksdb::Status, unless `broken`; that becomes true if it throws.
template <typename Call>
rocksdb::Status GuardedCall(std::atomic<bool>& broken, const Call& call) {
  if (broken.load(std::memory_order_relaxed)) return rocksdb::Status::MemoryLimit();
  try {
    return call();
  } catch (...) {
    broken.store(true, std::memory_order_relaxed);
    return rocksdb::Status::MemoryLimit();
  }
}

class GuardedIterator final : public rocksdb::Iterator {
 public:
  explicit GuardedIterator(std::atomic<bool>& broken) : broken_(broken) {}
  ~GuardedIterator() override {
    // One of a broken database may hold what is half changed.
    if (broken_.load(std::memory_order_relaxed)) static_cast<void>(inner_.release());
  }

  void Open(rocksdb::DB& db, const rocksdb::ReadOptions& options, rocksdb::ColumnFamilyHandle* family) {
    Run([&] { inner_.reset(db.NewIterator(options, family)); });
  }

  bool Valid() const override { return failed_.ok() && inner_->Valid(); }
  void SeekToFirst() override {
    Run([&] { inner_->SeekToFirst(); });
  }
  void SeekToLast() override {
    Run([&] { inner_->SeekToLast(); });
  }
  void Seek(const rocksdb::Slice& target) override {
    Run([&] { inner_->Seek(target); });
  }
  void SeekForPrev(const rocksdb::Slice& target) override {
    Run([&] { inner_->SeekForPrev(target); });
  }
  void Next() override {
    Run([&] { inner_->Next(); });
  }
  void Prev() override {
    Run([&] { inner_->Prev(); });
  }
  rocksdb::Slice key() const override { return inner_->key(); }
  rocksdb::Slice value() const override { return inner_->value(); }
  rocksdb::Status status() const override { return failed_.ok() ? inner_->status() : failed_; }

 private:
  template <typename Step>
  void Run(const Step& step) {
    if (!failed_.ok()) return;
    failed_ = GuardedCall(broken_, [&] {
      step();
      return rocksdb::Status::OK();
    });
  }

  std::atomic<bool>& broken_;
  std::unique_ptr<rocksdb::Iterator> inner_;
  rocksdb::Status failed_;
};

// What a record takes in a batch beside its key and value: a tag, a column family and two lengths.
constexpr size_t kRecordBytes = 32;

}  // namespace

template <typename Call>
rocksdb::Status GuardedDb::Guard(const Call& call) {
  return GuardedCall(broken_, call);
}

rocksdb::Status GuardedDb::Put(const rocksdb::WriteOptions& options, rocksdb::ColumnFamilyHandle* family,
                               const rocksdb::Slice& key, const rocksdb::Slice& value) {
  return Guard([&] { return db_->Put(options, family, key, value); });
}

rocksdb::Status GuardedDb::Write(const rocksdb::WriteOptions& options, rocksdb::WriteBatch* batch) {
  return Guard([&] { return db_->Write(options, batch); });
}

rocksdb::Status GuardedDb::DeleteRange(const rocksdb::WriteOptions& options, rocksdb::ColumnFamilyHandle* family,
                                       const rocksdb::Slice& begin, const rocksdb::Slice& end) {
  return Guard([&] { return db_->DeleteRange(options, family, begin, end); });
}

rocksdb::Status GuardedDb::Get(const rocksdb::ReadOptions& options, rocksdb::ColumnFamilyHandle* family,
                               const rocksdb::Slice& key, rocksdb::PinnableSlice* value) {
  return Guard([&] { return db_->Get(options, family, key, value); });
}

rocksdb::Iterator* GuardedDb::NewIterator(const rocksdb::ReadOptions& options, rocksdb::ColumnFamilyHandle* family) {
  auto iterator = std::make_unique<GuardedIterator>(broken_);
  iterator->Open(*db_, options, family);
  return iterator.release();
}

rocksdb::Status GuardedDb::Flush(const rocksdb::FlushOptions& options, rocksdb::ColumnFamilyHandle* family) {
  return Guard([&] { return db_->Flush(options, family); });
}

rocksdb::Status GuardedDb::Flush(const rocksdb::FlushOptions& options,
                                 const std::vector<rocksdb::ColumnFamilyHandle*>& families) {
  return Guard([&] { return db_->Flush(options, families); });
}

rocksdb::Status GuardedDb::FlushWAL(bool sync) {
  return Guard([&] { return db_->FlushWAL(sync); });
}

rocksdb::Status GuardedDb::CompactRange(const rocksdb::CompactRangeOptions& options,
                                        rocksdb::ColumnFamilyHandle* family, const rocksdb::Slice* begin,
                                        const rocksdb::Slice* end) {
  return Guard([&] { return db_->CompactRange(options, family, begin, end); });
}

bool GuardedDb::GetIntProperty(rocksdb::ColumnFamilyHandle* family, const rocksdb::Slice& property, uint64_t* value) {
  bool known = false;
  const rocksdb::Status status = Guard([&] {
    known = db_->GetIntProperty(family, property, value);
    return rocksdb::Status::OK();
  });
  return status.ok() && known;
}

rocksdb::Status GuardedDb::VerifyChecksum() {
  return Guard([&] { return db_->VerifyChecksum(); });
}

void Reserve(rocksdb::WriteBatch& batch, size_t bytes) {
  const std::string& now = batch.Data();
  const size_t wanted = now.size() + bytes + kRecordBytes;
  if (now.capacity() >= wanted) return;
  std::string grown;
  grown.reserve(std::max(wanted, 2 * now.capacity()));
  grown.append(now);
  batch = rocksdb::WriteBatch(std::move(grown));
}

}  // namespace mneme
