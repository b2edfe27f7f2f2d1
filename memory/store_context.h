// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_STORE_CONTEXT_H_
#define MNEME_MEMORY_STORE_CONTEXT_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/parallel.h"
#include "index/scan/scan_counts.h"
#include "memory/age_penalties.h"
#include "memory/background_thread.h"
#include "memory/segment/index_run.h"
#include "memory/segment/segment_registry.h"
#include "memory/store_options.h"
#include "storage/database.h"

namespace mneme {

class Device;

// Whether this process lacks the right or the means to read, which says nothing about what is stored.
inline bool CannotBeRead(const absl::Status& status) {
  return absl::IsPermissionDenied(status) || absl::IsResourceExhausted(status) || absl::IsUnavailable(status);
}

// Sums of ScanCounts over all scans since the store was opened. Thread-safe.
struct ScanCounters {
  std::atomic<int64_t> by_code{0};
  std::atomic<int64_t> reranked{0};
  std::atomic<int64_t> rescanned{0};
  std::atomic<int64_t> by_key{0};

  void Add(const ScanCounts& counts) {
    by_code += counts.by_code;
    reranked += counts.reranked;
    rescanned += counts.rescanned;
    by_key += counts.by_key;
  }
};

// What the memories of one store share: the database, the segments, threads, the device, counters and the log. Owned by
// the store, and outlives its memories; knows neither. Thread-safe.
class StoreContext {
 public:
  // Errors: those of Device::Open but for a device that is not there, which is logged.
  static absl::StatusOr<std::unique_ptr<StoreContext>> New(std::unique_ptr<Database> database,
                                                           const StoreOptions& options);
  // Stops the background thread, then frees the disk of all dropped segments.
  ~StoreContext();

  const StoreOptions& options() const { return options_; }
  bool writable() const { return options_.database.mode == DatabaseOptions::Mode::kReadWrite; }
  Database& database() { return *database_; }
  SegmentRegistry& segments() { return segments_; }
  Executor& executor() { return *executor_; }
  const std::shared_ptr<Device>& device() const { return device_; }          // null: none
  BackgroundThread* background_thread() const { return background_.get(); }  // null: none
  IndexCounters& index_counters() { return index_counters_; }
  ScanCounters& scan_counters() { return scan_counters_; }
  AgePenaltyCache& age_penalties() { return age_penalties_; }

  // Hands a line to the host's log.
  void Log(absl::string_view message) const noexcept;

  // Checks whether `more_bytes` fit into the disk budget; frees dropped segments first if they do not.
  // Errors: ResourceExhausted.
  absl::Status CheckDiskBudget(int64_t more_bytes);

 private:
  StoreContext(std::unique_ptr<Database> database, const StoreOptions& options);
  absl::Status OpenDevice();
  // Returns: by how many bytes the store would exceed its disk budget.
  absl::StatusOr<int64_t> BytesOverBudget(int64_t more_bytes);

  const StoreOptions options_;
  const std::unique_ptr<Database> database_;
  const std::unique_ptr<Executor> own_executor_;  // null: the host's
  Executor* const executor_;
  SegmentRegistry segments_;
  std::shared_ptr<Device> device_;  // constant since New
  IndexCounters index_counters_;
  ScanCounters scan_counters_;
  AgePenaltyCache age_penalties_;
  std::unique_ptr<BackgroundThread> background_;  // constant since New
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_CONTEXT_H_
