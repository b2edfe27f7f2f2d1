// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CLI_STORE_HANDLE_H_
#define MNEME_CLI_STORE_HANDLE_H_

#include <cstdint>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "mneme.h"

namespace mneme::cli {

// A call of the library that failed: its status, and its message as what().
class CallError : public std::runtime_error {
 public:
  // Takes the message from mneme_last_error().
  explicit CallError(mneme_status status) : std::runtime_error(mneme_last_error()), status_(status) {}

  mneme_status status() const { return status_; }

 private:
  mneme_status status_;
};

// Throws CallError unless `status` is MNEME_OK.
inline void Check(mneme_status status) {
  if (status != MNEME_OK) throw CallError(status);
}

// What mneme_store_list tells of a memory.
struct ListedMemory {
  std::string name;
  int64_t tokens = 0;
  int64_t bytes = 0;
};

// An open store, which exists already unless it is asked to be created. Every function throws CallError.
class StoreHandle {
 public:
  using Log = std::function<void(const std::string& message)>;  // may be called from any thread

  StoreHandle(const std::string& path, mneme_store_mode mode, Log log, int threads = 1, bool create = false);
  ~StoreHandle();
  StoreHandle(const StoreHandle&) = delete;
  StoreHandle& operator=(const StoreHandle&) = delete;

  std::vector<ListedMemory> List() const;
  mneme_store_stats Stats() const;
  std::string Metrics() const;  // in Prometheus' text format
  mneme_store_verify_report Verify(mneme_progress_fn progress, void* context) const;
  void Drop(const std::vector<std::string>& names);  // all or none
  void Compact();

  // The destructor closes, too, but cannot tell an error.
  void Close();

  mneme_store* get() const { return store_; }

 private:
  void Tell(const std::string& message);

  const Log log_;
  std::mutex mutex_;
  bool opening_ = true;              // guarded by mutex_
  std::vector<std::string> untold_;  // guarded by mutex_; what came while the store was being opened
  mneme_store* store_ = nullptr;
};

// An open memory; must be gone before its store is closed.
class MemoryHandle {
 public:
  MemoryHandle(const StoreHandle& store, const std::string& name);
  // Takes over an open memory.
  explicit MemoryHandle(mneme_memory* memory) : memory_(memory) {}
  ~MemoryHandle();
  MemoryHandle(const MemoryHandle&) = delete;
  MemoryHandle& operator=(const MemoryHandle&) = delete;

  mneme_memory_info Info() const;
  void Maintain(mneme_progress_fn progress, void* context);
  void Evict(int64_t keep_tokens);

  mneme_memory* get() const { return memory_; }

  // The destructor closes, too, but cannot tell an error.
  void Close();

 private:
  mneme_memory* memory_ = nullptr;
};

}  // namespace mneme::cli

#endif  // MNEME_CLI_STORE_HANDLE_H_
