// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_RUNTIME_H_
#define MNEME_ATTENTION_CUDA_RUNTIME_H_

#include <cstdint>
#include <memory>
#include <string>

#include "attention/cuda/plan.h"

namespace mneme::cuda {

// `rows` rows of `bytes` each; row r goes from `from` + r * from_pitch to `to` + r * to_pitch. Each side lies wholly in
// the device's memory or wholly in the host's; what lies in the host's is pinned (AllocateHost).
struct CopyShape {
  const void* from = nullptr;
  int64_t from_pitch = 0;
  void* to = nullptr;
  int64_t to_pitch = 0;
  int64_t bytes = 0;
  int64_t rows = 1;
};

// One device, and all that the engine asks of it. Plain C++: whoever uses it needs no CUDA header. CUDA implements it
// (runtime.cu); so do the tests, on the CPU (tests/attention/cuda/emulated_runtime.h). Which of the two a program has
// is settled when it is linked, by who defines DeviceCount and OpenRuntime.
//
// Errors are text, "" for success. Streams and events are CUDA's own, so that a host's stream may be given. What takes
// a stream is queued there and runs in its order; nothing but Synchronise waits. While a stream is being captured, Copy
// and Attend there become part of its graph, and nothing else may be asked of it; other streams are as ever. The
// calling thread's current device is as before when a call returns. Thread-safe.
class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual std::string NewStream(void** stream) = 0;
  virtual void DeleteStream(void* stream) = 0;  // what is queued there still runs
  virtual std::string NewEvent(void** event) = 0;
  virtual void DeleteEvent(void* event) = 0;
  // The event stands from now on for all that is queued on `stream` so far.
  virtual std::string Record(void* event, void* stream) = 0;
  // What is queued on `stream` from now on begins after what the event stands for now; at once, if nothing.
  virtual std::string Wait(void* stream, void* event) = 0;
  // Returns when what the event stands for is done, or says what went wrong on the way.
  virtual std::string Synchronise(void* event) = 0;
  // Whether what the event stands for is done.
  virtual bool Done(void* event) = 0;
  // Whether `stream` is being captured into a graph.
  virtual std::string IsCaptured(void* stream, bool* captured) = 0;

  // Device memory, aligned to 256 bytes and full of anything, for what is queued on `stream` from now on and what waits
  // for it; to be freed on a stream that waits for all who use it.
  virtual std::string Allocate(int64_t bytes, void* stream, void** data) = 0;
  virtual void Free(void* data, void* stream) = 0;
  // Host memory that copies read and write while the host goes on. May wait for the device.
  virtual std::string AllocateHost(int64_t bytes, void** data) = 0;
  virtual void FreeHost(void* data) = 0;  // when the copies are done that read or write it

  // Queues a copy: host memory must stay as it is until it is done.
  virtual std::string Copy(const CopyShape& shape, void* stream) = 0;
  // See attend.h.
  virtual std::string Prepare(const AttendProblem& problem, const AttendBounds& bounds, AttendPlan* plan) = 0;
  virtual std::string Attend(const AttendProblem& problem, const AttendPlan& plan, void* workspace, void* stream) = 0;
};

// Devices that this process can use: 0 in a build without CUDA and where there is no driver.
int32_t DeviceCount();

// Device `ordinal`, 0 … DeviceCount() - 1. The runtime must not outlive the process's use of the device.
std::string OpenRuntime(int32_t ordinal, std::unique_ptr<Runtime>* runtime);

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_RUNTIME_H_
