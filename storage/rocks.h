// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_ROCKS_H_
#define MNEME_STORAGE_ROCKS_H_

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "rocksdb/cache.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/options.h"
#include "rocksdb/statistics.h"

#include "base/out_of_memory.h"
#include "storage/guarded_db.h"
#include "storage/store_folder.h"

namespace mneme {

// How mneme uses RocksDB: its settings, and the one place where its errors become ours.

enum Family { kDefaultFamily = 0, kLogFamily, kRowsFamily, kIndexFamily, kFamilyCount };
inline constexpr const char* kFamilyNames[kFamilyCount] = {"default", "log", "rows", "index"};

// An absl::Status that says what was being done ("commit: No space left on device").
//   corruption → DataLoss; a failed system call → by its errno (storage/errno_status.h); other I/O, shutdown →
//   Unavailable; busy → Aborted; not found → NotFound; what only a mistake of ours can cause → Internal.
absl::Status FromRocks(const rocksdb::Status& status, absl::string_view doing);

// The same for reads of a store that nobody else changes: a file that is gone is lost data.
absl::Status FromRocksRead(const rocksdb::Status& status, absl::string_view doing);

// An open database and its column families, closed together.
class RocksHandle {
 public:
  // A handle whose database is broken (GuardedDb) is never destroyed, so that it keeps the database, its environment
  // and with that the lock on the store until the process ends.
  static std::shared_ptr<RocksHandle> New(std::shared_ptr<rocksdb::Env> env) {
    return std::shared_ptr<RocksHandle>(new RocksHandle(std::move(env)), [](RocksHandle* handle) {
      if (!handle->broken()) delete handle;
    });
  }
  explicit RocksHandle(std::shared_ptr<rocksdb::Env> env) : env_(std::move(env)) {}
  ~RocksHandle();
  RocksHandle(const RocksHandle&) = delete;
  RocksHandle& operator=(const RocksHandle&) = delete;

  // Owns an open database from now on. Cannot fail, so that a database that was just opened is closed whatever happens.
  // `families` are in the order of Family.
  void Adopt(rocksdb::DB* db, std::vector<rocksdb::ColumnFamilyHandle*> families) noexcept {
    db_.emplace(db);
    families_ = std::move(families);
  }

  rocksdb::DB* operator->() { return &*db_; }
  rocksdb::DB* get() { return &*db_; }
  bool broken() const { return db_ && db_->broken(); }
  rocksdb::ColumnFamilyHandle* family(Family f) const { return families_[f]; }

 private:
  const std::shared_ptr<rocksdb::Env> env_;  // outlives the database
  std::optional<GuardedDb> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> families_;
};

// RocksDB's version of its table files.
inline constexpr uint32_t kTableVersion = 5;

// Values of at least this many bytes lie in blob files.
inline constexpr uint64_t kMinBlobBytes = 4 << 10;

inline rocksdb::Slice ToSlice(absl::string_view bytes) {
  return rocksdb::Slice(bytes.data(), bytes.size());
}
inline absl::string_view ToView(const rocksdb::Slice& slice) {
  return absl::string_view(slice.data(), slice.size());
}

// The default file system and the process-wide threads, but able to tell where values lie (FindValue), and without
// RocksDB's own thread that waits for room on a full disk: while it waits nobody else may resume. A database's lock,
// once taken through it, is held until it is destroyed: a writer that opens its database again lets no other writer in
// between.
// `folder`, whose files it opens, is kept open as long; null: none is.
std::shared_ptr<rocksdb::Env> MakeEnv(std::shared_ptr<const StoreFolder> folder);

// Settings of the whole database; `env` must outlive it. `log` gets RocksDB's warnings and errors, from any thread.
rocksdb::DBOptions MakeDbOptions(rocksdb::Env* env, const std::function<void(absl::string_view)>& log,
                                 std::shared_ptr<rocksdb::Statistics> statistics);

// The column families in the order of Family, which share `block_cache`. What was read and is still pinned may outlive
// the database, but not the cache.
std::vector<rocksdb::ColumnFamilyDescriptor> MakeFamilies(const std::shared_ptr<rocksdb::Cache>& block_cache);
std::shared_ptr<rocksdb::Cache> MakeBlockCache();

// Runs `body`, which returns an absl::Status or StatusOr, and turns what it throws into a status.
template <typename Body>
auto Guarded(absl::string_view doing, const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return OutOfMemoryError(doing);
  } catch (const std::exception& e) {
    return absl::InternalError(absl::StrCat(doing, ": ", e.what()));
  }
}

}  // namespace mneme

#endif  // MNEME_STORAGE_ROCKS_H_
