// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_STORE_H_
#define MNEME_MEMORY_STORE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "base/mutex.h"
#include "base/parallel.h"
#include "index/scan/code_scan.h"
#include "memory/age_penalties.h"
#include "memory/segment/index_run.h"
#include "memory/segment/segment.h"
#include "storage/database.h"

namespace mneme {

class Device;
class Memory;

struct StoreOptions {
  DatabaseOptions database;
  Executor* executor = nullptr;  // borrowed; null: a pool of `threads`
  int threads = 1;
  bool background = false;          // index builds on a thread of the store's own, else inside Commit
  bool ignore_index_blobs = false;  // index blobs are never parsed
  size_t ram_budget_bytes = 0;
  // Bytes that are read in bulk in the time that one row takes by itself: decides when single rows of a segment that is
  // not in memory cost more than the whole. About 10 KB where the page cache has them, 40 KB where a fast device has.
  int64_t row_read_cost = 16 << 10;
  int64_t disk_budget_bytes = 0;
  // Rows of memories are mirrored on this device and searched there, as far as they have room; 0: on none. Where there
  // is no device, memories stay with the CPU, and the log says so.
  int64_t device_budget_bytes = 0;
  int32_t device_ordinal = 0;
};

// What the scans of all memories did since the store was opened; see ScanCounts.
struct ScanCounters {
  std::atomic<int64_t> by_code{0};
  std::atomic<int64_t> looked_at{0};
  std::atomic<int64_t> repeated{0};
  std::atomic<int64_t> by_key{0};

  void Add(const ScanCounts& counts) {
    by_code += counts.by_code;
    looked_at += counts.reranked;
    repeated += counts.rescanned;
    by_key += counts.by_key;
  }
};

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

struct VerifyReport {
  int64_t memories = 0;
  int64_t damaged_memories = 0;
  int64_t damaged_values = 0;
  int64_t damaged_indexes = 0;  // and codes
  int64_t bytes_read = 0;
};

// Work done and work in all; false cancels.
using Progress = std::function<bool(int64_t, int64_t)>;

// A folder of memories. Thread-safe.
class Store {
 public:
  // Errors as Database::Open. A damaged manifest is logged and costs its own memory only.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& path, const StoreOptions& options);
  ~Store();

  // FailedPrecondition while memories are open. The store must not be used after it succeeded.
  absl::Status Close();

  absl::StatusOr<std::shared_ptr<Memory>> CreateMemory(const std::string& name, const ModelCard& card,
                                                       const MemoryOptions& options);
  // The same name again: the same memory, counted.
  absl::StatusOr<std::shared_ptr<Memory>> OpenMemory(const std::string& name, const ModelCard* expected);
  // A new memory that starts as the first at_token tokens of `memory` and shares their rows; open, as by CreateMemory.
  absl::StatusOr<std::shared_ptr<Memory>> ForkMemory(const std::shared_ptr<Memory>& memory, int64_t at_token,
                                                     const std::string& new_name);
  absl::Status CloseMemory(const std::shared_ptr<Memory>& memory);
  absl::Status DropMemory(const std::string& name);
  // All of them or none, in one write. FailedPrecondition names one that is open, NotFound one that there is not.
  absl::Status DropMemories(const std::vector<std::string>& names);

  // Calls visit(name, manifest) in name order until it returns false.
  absl::Status List(const std::function<bool(const std::string&, const MemoryManifest&)>& visit);
  absl::Status Verify(const Progress& progress, VerifyReport* report);
  absl::StatusOr<StoreStats> Stats();

  // For Memory.
  Database& database() { return *database_; }
  const std::shared_ptr<SegmentContext>& segment_context() { return segment_context_; }
  Executor& executor() { return *executor_; }
  IndexCounters& index_counters() { return index_counters_; }
  ScanCounters& scan_counters() { return scan_counters_; }
  AgePenaltyCache& age_penalties() { return age_penalties_; }
  const StoreOptions& options() const { return options_; }
  // Null: none.
  const std::shared_ptr<Device>& device() const { return device_; }
  bool writable() const { return options_.database.mode == DatabaseOptions::Mode::kReadWrite; }
  void Log(absl::string_view message) const;

  // The one object of a sealed segment, however many memories share it.
  std::shared_ptr<Segment> SharedSegment(SegmentId id, const ModelCard& card, DType dtype, int64_t rows);
  void RegisterSegment(const std::shared_ptr<Segment>& segment);

  // A manifest replaced another (either may be null): counts who names what, and gives back the disk of segments that
  // nobody names any more as soon as no reader holds them.
  void ManifestReplaced(const MemoryManifest* before, const MemoryManifest* after);
  // Gives back the disk of dropped segments that no reader holds. Each time costs flushes and syncs, so it waits until
  // much has come together, a quarter of the chunks that there are, or chunks that a memory which is still there has
  // evicted; `all` does not wait.
  void CollectDropped(bool all = false);

  // Tries to give back disk before it refuses.
  absl::Status CheckDiskBudget(int64_t more_bytes);

  // Has Memory::BuildIndexes called soon by the background thread.
  void ScheduleIndexBuild(const std::shared_ptr<Memory>& memory);

 private:
  Store(std::unique_ptr<Database> database, const StoreOptions& options);
  absl::Status OpenDevice();
  absl::Status CountReferences();
  absl::Status VerifyOne(const MemoryManifest& manifest, const Progress& progress, VerifyReport* report,
                         std::vector<std::string>* messages);
  void Background();
  absl::Status DropNamed(absl::string_view field, const std::vector<std::string>& names);
  // Takes those of dropped_ that can be freed now out of it.
  void TakeDropped(bool all, std::vector<SegmentId>* logged, std::vector<SegmentId>* chunked);
  absl::StatusOr<int64_t> DiskBytesBeyondBudget(int64_t more_bytes);
  std::shared_ptr<Memory> FindOpen(const std::string& name, bool count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  struct OpenMemoryEntry {
    std::shared_ptr<Memory> memory;
    int count = 0;
  };

  const StoreOptions options_;
  const std::unique_ptr<Database> database_;
  std::unique_ptr<Executor> own_executor_;
  Executor* executor_;
  const std::shared_ptr<SegmentContext> segment_context_;
  std::shared_ptr<Device> device_;  // since Open
  IndexCounters index_counters_;
  ScanCounters scan_counters_;
  AgePenaltyCache age_penalties_;

  Mutex mutex_;  // held while a memory is opened, so that a name is opened once
  absl::flat_hash_map<std::string, OpenMemoryEntry> open_ ABSL_GUARDED_BY(mutex_);

  // Lets go of the entries of segments that no longer exist, once they may be half of all.
  void ForgetFreedSegments() ABSL_EXCLUSIVE_LOCKS_REQUIRED(segments_mutex_);

  static constexpr size_t kFewSegments = 1024;

  Mutex segments_mutex_;
  size_t forget_at_ ABSL_GUARDED_BY(segments_mutex_) = kFewSegments;
  absl::flat_hash_map<SegmentId, std::weak_ptr<Segment>> segments_ ABSL_GUARDED_BY(segments_mutex_);
  absl::flat_hash_map<SegmentId, int64_t> segment_references_ ABSL_GUARDED_BY(segments_mutex_);
  absl::flat_hash_map<IndexId, int64_t> index_references_ ABSL_GUARDED_BY(segments_mutex_);
  struct DroppedSegment {
    SegmentId id = 0;
    int64_t chunk_bytes = 0;  // 0: it has log records only
    bool evicted = false;     // by a memory that is still there, whose disk is to stay within its bound
  };
  std::vector<DroppedSegment> dropped_ ABSL_GUARDED_BY(segments_mutex_);  // unnamed, perhaps still held by readers

  Mutex background_mutex_;
  CondVar background_due_;
  std::deque<std::weak_ptr<Memory>> due_ ABSL_GUARDED_BY(background_mutex_);
  bool stopping_ ABSL_GUARDED_BY(background_mutex_) = false;
  std::thread background_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_H_
