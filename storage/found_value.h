#ifndef MNEME_STORAGE_FOUND_VALUE_H_
#define MNEME_STORAGE_FOUND_VALUE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "rocksdb/file_system.h"

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
// ReadOptions::verify_checksums must be off: what is found then is the value, and not the record around it.
//
// One at a time in a thread.
class FindValue {
 public:
  FindValue() { current_ = this; }
  ~FindValue() { current_ = nullptr; }
  FindValue(const FindValue&) = delete;
  FindValue& operator=(const FindValue&) = delete;

  // This thread's; null if there is none.
  static FindValue* Current() { return current_; }

  FoundValue found;

 private:
  static thread_local FindValue* current_;
};

}  // namespace mneme

#endif  // MNEME_STORAGE_FOUND_VALUE_H_
