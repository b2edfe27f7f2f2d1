// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_CHUNK_PLACES_H_
#define MNEME_STORAGE_CHUNK_PLACES_H_

#include <shared_mutex>
#include <string>
#include <unordered_map>

#include "absl/strings/string_view.h"

#include "storage/found_value.h"

namespace mneme {

// Where the chunks lie of which rows were read, so that the next row costs one short read and no search in the tree.
// Blob files never change; what is known of one is good for as long as RocksDB has it open, and never holds it open.
// Thread-safe.
class ChunkPlaces {
 public:
  struct Place {
    FoundValue value;    // nowhere: not known, or not any more
    std::string header;  // of the chunk, as it was verified; empty: not yet
  };

  Place Find(const std::string& key) const;
  void Put(const std::string& key, const FoundValue& value);
  // Of a chunk whose place was put.
  void SetHeader(const std::string& key, absl::string_view header);
  void Forget(const std::string& key);

 private:
  struct Entry {
    std::weak_ptr<rocksdb::FSRandomAccessFile> file;
    uint64_t offset = 0;
    size_t bytes = 0;
    std::string header;
  };

  mutable std::shared_mutex mutex_;
  std::unordered_map<std::string, Entry> entries_;  // guarded by mutex_
};

}  // namespace mneme

#endif  // MNEME_STORAGE_CHUNK_PLACES_H_
