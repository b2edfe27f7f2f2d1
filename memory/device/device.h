// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_DEVICE_H_
#define MNEME_MEMORY_DEVICE_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "attention/cuda/device.h"
#include "attention/cuda/runtime.h"
#include "base/mutex.h"
#include "memory/device/call_context.h"
#include "memory/device/staging_ring.h"

namespace mneme {

// What a device did since the store was opened.
struct DeviceCounters {
  std::atomic<int64_t> attended{0};     // sequences of attend calls whose memory was searched on the device
  std::atomic<int64_t> fell_back{0};    // sequences whose memory the CPU searched although the store has a device
  std::atomic<int64_t> copied_rows{0};  // tokens of a layer that were copied to the device
  std::atomic<int64_t> staged{0};       // calls whose device tensors were copied through host memory
};

// The device of one store: runtime, budgets, and the contexts that calls borrow. Thread-safe.
class Device {
 public:
  // Errors: FailedPrecondition if there is no device, InvalidArgument if none has this number.
  static absl::StatusOr<std::shared_ptr<Device>> Open(int32_t ordinal, int64_t budget_bytes,
                                                      std::function<void(absl::string_view)> log);
  ~Device();

  int32_t ordinal() const { return ordinal_; }
  cuda::Runtime& runtime() const { return *runtime_; }
  StagingRing& staging() { return staging_; }
  DeviceCounters& counters() { return counters_; }
  // Seven eighths of the budget are for rows. The rest is for calls, so that rows never take the bytes without which no
  // call can read them.
  cuda::DeviceBudget& row_budget() { return row_budget_; }
  cuda::DeviceBudget& call_budget() { return call_budget_; }
  int64_t bytes_used() const { return row_budget_.used() + call_budget_.used(); }

  // Returns: a context that no other call has until it is returned, and on which no work is running. Waits if too many
  // contexts have work running.
  absl::StatusOr<std::unique_ptr<CallContext>> BorrowContext();
  // Requires: the call has succeeded, or has queued no work. A context whose call failed is destroyed instead.
  // busy: work up to the context's event may still be running.
  void ReturnContext(std::unique_ptr<CallContext> context, bool busy);

  // Logs that the device has failed and the CPU serves instead. The same error is logged once until a call succeeds.
  void LogFailure(const absl::Status& status);

 private:
  struct IdleContext {
    std::unique_ptr<CallContext> context;
    bool busy;
  };

  Device(int32_t ordinal, std::unique_ptr<cuda::Runtime> runtime, int64_t budget_bytes,
         std::function<void(absl::string_view)> log);

  static constexpr size_t kMostBusyContexts = 16;

  const int32_t ordinal_;
  const std::unique_ptr<cuda::Runtime> runtime_;
  cuda::DeviceBudget row_budget_, call_budget_;
  StagingRing staging_;
  const std::function<void(absl::string_view)> log_;
  DeviceCounters counters_;

  Mutex mutex_;
  std::deque<IdleContext> contexts_ ABSL_GUARDED_BY(mutex_);  // the longest returned first
  std::string last_logged_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_DEVICE_H_
