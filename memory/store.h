// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_STORE_H_
#define MNEME_MEMORY_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/mutex.h"
#include "memory/exchange/import_memory.h"
#include "memory/memory.h"
#include "memory/progress.h"
#include "memory/store_context.h"
#include "memory/store_options.h"
#include "memory/store_verify.h"
#include "storage/backup.h"
#include "storage/database.h"

namespace mneme {

struct StoreStats {
  DatabaseStats database;
  int64_t open_memories = 0;
  int64_t ram_bytes = 0;
  int64_t indexes_built = 0;
  int64_t indexes_loaded = 0;
  int64_t indexes_rebuilt = 0;
  ScanCounts scanned;
  int64_t codes_loaded = 0;
  int64_t codes_rebuilt = 0;
  int64_t rows_read = 0;
  int64_t device_bytes = 0;
  int64_t device_searched_sequences = 0;
  int64_t device_fallback_sequences = 0;
  int64_t device_copied_rows = 0;
  int64_t host_staged_calls = 0;
};

// A directory of memories: creates, opens, forks and drops them. Thread-safe. It owns what its memories share
// (StoreContext) and the open memories together with their users.
class Store {
 public:
  // A damaged manifest is logged and costs its own memory only.
  // Errors: as Database::Open and StoreContext::New; InvalidArgument.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& path, const StoreOptions& options);

  // Checks that the store can be destroyed.
  // Errors: FailedPrecondition while memories are open.
  absl::Status Close();

  // Errors: AlreadyExists; InvalidArgument; FailedPrecondition if the store is open for reading only.
  absl::StatusOr<std::shared_ptr<Memory>> CreateMemory(const std::string& name, const ModelCard& card,
                                                       const MemoryOptions& options);
  // Opens a memory, or counts one more user of it if it is open. `expected` may be null.
  // Errors: NotFound; DataLoss; FailedPrecondition if its card differs from `expected`.
  absl::StatusOr<std::shared_ptr<Memory>> OpenMemory(const std::string& name, const ModelCard* expected);
  // Makes a memory of the first at_token tokens of `memory`, with which it shares rows, and opens it.
  absl::StatusOr<std::shared_ptr<Memory>> ForkMemory(const std::shared_ptr<Memory>& memory, int64_t at_token,
                                                     const std::string& new_name);
  // Makes an exported memory one of the store's, durable, and opens it. `progress` counts bytes.
  // `expected` may be null.
  // Errors: AlreadyExists; FailedPrecondition if its card differs from `expected` or the store is open for reading
  // only; those of MemoryImport.
  absl::StatusOr<std::shared_ptr<Memory>> ImportMemory(MemoryImport& import, const std::string& name,
                                                       const ModelCard* expected, const Progress& progress);
  // To be called once for each time that the memory was created, opened, forked or imported.
  absl::Status CloseMemory(const std::shared_ptr<Memory>& memory);
  absl::Status DropMemory(const std::string& name);
  // Drops all of them or none, in one write.
  // Errors: FailedPrecondition names one that is open, NotFound one that does not exist.
  absl::Status DropMemories(const std::vector<std::string>& names);

  // Writes the store's files anew, without what was dropped. Rows that a reader still holds stay.
  // Errors: FailedPrecondition if the store is open for reading only.
  absl::Status Compact();

  // Calls visit(name, manifest) in name order until it returns false.
  absl::Status List(const std::function<bool(const std::string&, const MemoryManifest&)>& visit);
  // As VerifyStore.
  absl::Status Verify(const Progress& progress, VerifyReport* report) {
    return VerifyStore(*context_, progress, report);
  }
  // As Database::Backup. What was dropped is not in it.
  absl::StatusOr<BackupInfo> Backup(const std::string& folder, int64_t keep, const Progress& progress);
  absl::StatusOr<StoreStats> Stats();

  // What its memories share.
  StoreContext& context() { return *context_; }
  Database& database() { return context_->database(); }
  Executor& executor() { return context_->executor(); }
  const StoreOptions& options() const { return context_->options(); }
  const std::shared_ptr<Device>& device() const { return context_->device(); }
  bool writable() const { return context_->writable(); }
  void Log(absl::string_view message) const { context_->Log(message); }

 private:
  struct OpenEntry {
    std::shared_ptr<Memory> memory;
    int users = 0;
  };
  using OpenMemories = std::map<std::string, OpenEntry>;

  explicit Store(std::unique_ptr<StoreContext> context) : context_(std::move(context)) {}
  // Counts what all manifests name.
  absl::Status CountReferences();
  absl::Status CheckWritable() const;
  // Errors: AlreadyExists. `field` names the argument.
  absl::Status CheckNameIsFree(absl::string_view field, const std::string& name);
  absl::Status DropNamed(absl::string_view field, const std::vector<std::string>& names);
  // Reads the manifests of the memories to drop, and deletes them in `transaction`.
  absl::StatusOr<std::vector<MemoryManifest>> DeleteManifests(absl::string_view field,
                                                              const std::vector<std::string>& names,
                                                              Transaction& transaction)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // An entry is allocated before a memory is made durable, so that what follows cannot fail.
  static OpenMemories::node_type NewEntry(const std::string& name);
  void InsertOpen(OpenMemories::node_type entry, const std::shared_ptr<Memory>& memory)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::unique_ptr<StoreContext> context_;

  Mutex mutex_;                                // held while a memory is opened, so that a name is opened once
  OpenMemories open_ ABSL_GUARDED_BY(mutex_);  // by name
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_H_
