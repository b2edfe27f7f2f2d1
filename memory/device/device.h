// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_DEVICE_H_
#define MNEME_MEMORY_DEVICE_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "attention/cuda/device_rows.h"
#include "attention/cuda/runtime.h"
#include "base/mutex.h"

namespace mneme {

// What a device did since the store was opened.
struct DeviceCounters {
  std::atomic<int64_t> attended{0};     // sequences of mneme_attend whose memory was searched there
  std::atomic<int64_t> fell_back{0};    // and those that the CPU searched in a store that has a device
  std::atomic<int64_t> copied_rows{0};  // tokens of a layer that went there
  std::atomic<int64_t> staged{0};       // calls whose device tensors passed through the host's memory
};

class Device;

// A stream of the engine's own, deleted when its last user lets go of it. The device outlives it.
class DeviceStream {
 public:
  static absl::StatusOr<std::shared_ptr<DeviceStream>> New(Device& device);
  ~DeviceStream();
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;

  void* get() const { return stream_; }
  Device& device() const { return device_; }

 private:
  DeviceStream(Device& device, void* stream) : device_(device), stream_(stream) {}

  Device& device_;
  void* const stream_;
};

// Device memory within a budget, ordered by a stream: for what is queued there after it was made and before it goes.
class DeviceMemory {
 public:
  // ResourceExhausted if the budget has no room. The budget outlives it (it is the device's).
  static absl::StatusOr<std::unique_ptr<DeviceMemory>> New(std::shared_ptr<DeviceStream> stream,
                                                           cuda::DeviceBudget& budget, int64_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // The one that orders it.
  void* stream() const { return stream_->get(); }

 private:
  DeviceMemory(std::shared_ptr<DeviceStream> stream, cuda::DeviceBudget& budget, int64_t bytes)
      : stream_(std::move(stream)), budget_(budget), bytes_(bytes) {}

  const std::shared_ptr<DeviceStream> stream_;
  cuda::DeviceBudget& budget_;
  const int64_t bytes_;
  char* data_ = nullptr;
};

// What one call has for itself on the device: a stream, an event, and memory on both sides that grows as needed.
class DeviceDesk {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceDesk>> New(Device& device);
  // Waits for copies from or to its host memory, if any are under way.
  ~DeviceDesk();
  DeviceDesk(const DeviceDesk&) = delete;
  DeviceDesk& operator=(const DeviceDesk&) = delete;

  // At least so many bytes on either side, and for the kernels; what was there before is gone. Nothing of an earlier
  // call may be under way.
  absl::Status Reserve(int64_t bytes);
  absl::Status ReserveHost(int64_t bytes);
  absl::Status ReserveWorkspace(int64_t bytes) { return Grow(workspace_, bytes); }

  void* stream() const { return stream_->get(); }
  void* event() const { return event_; }
  char* device_data() const { return device_data_->data(); }
  char* host_data() const { return host_data_; }
  char* workspace() const { return workspace_ == nullptr ? nullptr : workspace_->data(); }

 private:
  explicit DeviceDesk(std::shared_ptr<DeviceStream> stream) : stream_(std::move(stream)) {}
  absl::Status Grow(std::unique_ptr<DeviceMemory>& memory, int64_t bytes);

  const std::shared_ptr<DeviceStream> stream_;
  void* event_ = nullptr;
  std::unique_ptr<DeviceMemory> device_data_, workspace_;
  char* host_data_ = nullptr;
  int64_t host_bytes_ = 0;
  bool busy_ = false;

  friend class Device;
};

// One device as a store uses it: a runtime, a budget, and what calls borrow. Thread-safe.
class Device {
 public:
  // FailedPrecondition where there is no device to be had, InvalidArgument where there is none of that number.
  static absl::StatusOr<std::shared_ptr<Device>> Open(int32_t ordinal, int64_t budget_bytes,
                                                      std::function<void(absl::string_view)> log);
  ~Device();

  int32_t ordinal() const { return ordinal_; }
  cuda::Runtime& runtime() const { return *runtime_; }
  DeviceCounters& counters() { return counters_; }
  // Seven eighths of the budget are for rows, the rest for what calls need meanwhile: rows that leave no room for a
  // call would be of no use.
  cuda::DeviceBudget& row_budget() { return row_budget_; }
  cuda::DeviceBudget& call_budget() { return call_budget_; }
  int64_t bytes_used() const { return row_budget_.used() + call_budget_.used(); }

  // A desk that nobody else has until it is given back, and on which nothing is under way.
  absl::StatusOr<std::unique_ptr<DeviceDesk>> Borrow();
  // The call went well. busy: what its event stands for is still under way there.
  void Return(std::unique_ptr<DeviceDesk> desk, bool busy);

  // Copies through pinned memory: fill(to) writes `bytes` <= kPieceBytes of it, queue(from) queues the copies that read
  // them on `stream`. Waits only if many pieces are under way.
  static constexpr int64_t kPieceBytes = int64_t{256} << 10;
  absl::Status Stage(int64_t bytes, void* stream, const std::function<void(char* to)>& fill,
                     const std::function<absl::Status(const char* from)>& queue);

  // Something failed on the device, and the CPU takes over. Told once until a call goes well again.
  void Failed(const absl::Status& status);

 private:
  Device(int32_t ordinal, std::unique_ptr<cuda::Runtime> runtime, int64_t budget_bytes,
         std::function<void(absl::string_view)> log);

  static constexpr size_t kPieces = 32;
  static constexpr size_t kMostBusyDesks = 16;  // calls that may be under way behind the host's back
  struct Piece {
    void* event = nullptr;
    bool used = false;
    bool lost = false;
  };

  const int32_t ordinal_;
  const std::unique_ptr<cuda::Runtime> runtime_;
  cuda::DeviceBudget row_budget_, call_budget_;
  const std::function<void(absl::string_view)> log_;
  DeviceCounters counters_;

  Mutex desks_mutex_;
  std::deque<std::unique_ptr<DeviceDesk>> desks_ ABSL_GUARDED_BY(desks_mutex_);  // longest given back first
  std::string told_ ABSL_GUARDED_BY(desks_mutex_);

  Mutex staging_mutex_;
  char* staging_ ABSL_GUARDED_BY(staging_mutex_) = nullptr;  // [kPieces][kPieceBytes]
  std::vector<Piece> pieces_ ABSL_GUARDED_BY(staging_mutex_);
  size_t next_piece_ ABSL_GUARDED_BY(staging_mutex_) = 0;
};

// What the runtime says as a status: Unavailable.
absl::Status DeviceStatus(const std::string& error);

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_DEVICE_H_
