// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_READ_METER_H_
#define MNEME_STORAGE_READ_METER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "rocksdb/env.h"

namespace mneme {

// Counts what a long operation of RocksDB reads and writes through an environment, and stops it by failing its next
// read. Thread-safe.
class ReadMeter {
 public:
  // Bytes [0, end) of `file` were read. A file that is read twice counts once.
  void CountRead(const std::string& file, uint64_t end);
  void CountWritten(uint64_t bytes) { written_ += bytes; }
  void Stop() { stopped_ = true; }
  void SetTotal(uint64_t bytes) { total_ = bytes; }

  uint64_t read() const { return read_; }
  uint64_t written() const { return written_; }
  uint64_t total() const { return total_; }
  bool stopped() const { return stopped_; }

 private:
  std::mutex mutex_;
  std::map<std::string, uint64_t> ends_;  // guarded by mutex_
  std::atomic<uint64_t> read_{0};
  std::atomic<uint64_t> written_{0};
  std::atomic<uint64_t> total_{0};
  std::atomic<bool> stopped_{false};
};

// The environment of a store's files, with `meter` at its files that are read or written in sequence.
std::shared_ptr<rocksdb::Env> MakeMeteredEnv(std::shared_ptr<ReadMeter> meter);

// Runs `operation`, which the environment of `meter` serves. `progress` is called on this thread, with bytes read and
// in all, and the operation then runs on another thread; a false return stops it. Without `progress` it runs here.
// Errors: those of `operation`; Cancelled names `doing`.
absl::Status RunMetered(absl::string_view doing, ReadMeter& meter,
                        const std::function<bool(uint64_t, uint64_t)>& progress,
                        const std::function<absl::Status()>& operation);

}  // namespace mneme

#endif  // MNEME_STORAGE_READ_METER_H_
