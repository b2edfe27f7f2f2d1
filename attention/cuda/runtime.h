// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_RUNTIME_H_
#define MNEME_ATTENTION_CUDA_RUNTIME_H_

#include <cstdint>
#include <memory>
#include <string>

#include "attention/cuda/plan.h"

namespace mneme::cuda {

// A copy of `rows` rows of `bytes` bytes: row r from `from` + r * from_pitch to `to` + r * to_pitch. Each side lies
// wholly in device memory or wholly in pinned host memory (AllocateHost).
struct CopyShape {
  const void* from = nullptr;
  int64_t from_pitch = 0;
  void* to = nullptr;
  int64_t to_pitch = 0;
  int64_t bytes = 0;
  int64_t rows = 1;
};

// One device, with everything that the engine needs of it. Plain C++: users need no CUDA header. CUDA implements it
// (runtime.cu), and so do the tests on the CPU (tests/attention/cuda/emulated_runtime.h). The linker decides which of
// them a program has: both define DeviceCount and OpenRuntime.
//
// Errors are text, "" for success. Streams and events are CUDA's, so that a host may pass its stream. Functions that
// take a stream queue their work there; only Synchronise waits. While a stream is being captured, only Copy and Attend
// may use it, and they become part of its graph. No call changes the calling thread's current device. Thread-safe.
class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual std::string NewStream(void** stream) = 0;
  virtual void DeleteStream(void* stream) = 0;  // work that is queued there still runs
  virtual std::string NewEvent(void** event) = 0;
  virtual void DeleteEvent(void* event) = 0;
  // Makes the event stand for all work that is queued on `stream` so far.
  virtual std::string Record(void* event, void* stream) = 0;
  // Makes work that is queued on `stream` from now on wait for the work that the event stands for now, if any.
  virtual std::string Wait(void* stream, void* event) = 0;
  // Waits until the work that the event stands for is done. Errors: those of the work.
  virtual std::string Synchronise(void* event) = 0;
  // Whether the work that the event stands for is done.
  virtual bool Done(void* event) = 0;
  // Whether `stream` is being captured into a graph.
  virtual std::string IsCaptured(void* stream, bool* captured) = 0;

  // Allocates device memory, aligned to 256 bytes and not initialised, for work that is queued on `stream` from now on
  // and work that waits for it. It must be freed on a stream that waits for all of its users.
  virtual std::string Allocate(int64_t bytes, void* stream, void** data) = 0;
  virtual void Free(void* data, void* stream) = 0;
  // Allocates pinned host memory, which copies use while the host continues. May wait for the device.
  virtual std::string AllocateHost(int64_t bytes, void** data) = 0;
  virtual void FreeHost(void* data) = 0;  // after the copies that use it are done

  // Queues a copy. Host memory must stay unchanged until it is done.
  virtual std::string Copy(const CopyShape& shape, void* stream) = 0;
  // See attend.h.
  virtual std::string Prepare(const AttendProblem& problem, const AttendBounds& bounds, AttendPlan* plan) = 0;
  virtual std::string Attend(const AttendProblem& problem, const AttendPlan& plan, void* workspace, void* stream) = 0;
};

// Returns: how many devices this process can use; 0 in a build without CUDA or without a driver.
int32_t DeviceCount();

// Opens device `ordinal`, from 0 to DeviceCount() - 1. The runtime must not outlive the process's use of the device.
std::string OpenRuntime(int32_t ordinal, std::unique_ptr<Runtime>* runtime);

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_RUNTIME_H_
