// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_FOUND_VALUE_H_
#define MNEME_STORAGE_FOUND_VALUE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "rocksdb/file_system.h"

#include "storage/rocks.h"

namespace mneme {

// Where a value lies in a blob file.
struct FoundValue {
  std::shared_ptr<rocksdb::FSRandomAccessFile> file;  // null: nowhere
  uint64_t offset = 0;
  size_t bytes = 0;
};

// RocksDB reads values as a whole and copies them, where some rows of a chunk are wanted, or all in their own place.
// While an object of this class lives, a Get of its thread that comes upon a value in a blob file ends there, with an
// error, and `found` says where the value lies. The store's file system (rocks.cc) sees to that.
// ReadOptions::verify_checksums stays on: without it RocksDB would parse, and keep in its cache, blocks of its tables
// that nobody has checked. It then asks for a value together with the record's head, which is left out here.
//
// One at a time in a thread.
class FindValue {
 public:
  // key_bytes: of the key that is looked for.
  explicit FindValue(size_t key_bytes) : head_bytes_(kRecordHeaderBytes + key_bytes) { current_ = this; }
  ~FindValue() { current_ = nullptr; }
  FindValue(const FindValue&) = delete;
  FindValue& operator=(const FindValue&) = delete;

  // This thread's; null if there is none.
  static FindValue* Current() { return current_; }

  // Told by the file system that a record, bytes [offset, offset + bytes) of `file`, is about to be read. False if
  // that is too short to be one.
  bool Find(const std::shared_ptr<rocksdb::FSRandomAccessFile>& file, uint64_t offset, size_t bytes) {
    if (bytes < head_bytes_ + kMinBlobBytes) return false;
    found = {file, offset + head_bytes_, bytes - head_bytes_};
    return true;
  }

  FoundValue found;

 private:
  // A record of a blob file: lengths of key and value (8 bytes each), expiration (8), CRC of these, CRC of key and
  // value (4 each), key, value (rocksdb/db/blob/blob_log_format.h).
  static constexpr size_t kRecordHeaderBytes = 32;
  static thread_local FindValue* current_;

  const size_t head_bytes_;
};

}  // namespace mneme

#endif  // MNEME_STORAGE_FOUND_VALUE_H_
