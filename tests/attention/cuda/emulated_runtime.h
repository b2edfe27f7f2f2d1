// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_ATTENTION_CUDA_EMULATED_RUNTIME_H_
#define MNEME_TESTS_ATTENTION_CUDA_EMULATED_RUNTIME_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "attention/cuda/runtime.h"

namespace mneme::cuda {

// A device on the CPU, which runs the kernels' code in the emulator. In a program that links emulated_runtime.cc,
// OpenRuntime returns this device.
//
// It makes mistakes show. Queued work runs late, streams take turns at random, and only Synchronise guarantees that
// work is done; so code that forgets to wait, or frees memory too early, gets wrong numbers. Memory is full of NaN when
// it is allocated and when it is freed. Only queued work may use device memory: a host that dereferences such a pointer
// gets a signal. After work that fails, Synchronise fails, as on a device; so it does after a kernel whose rows or
// arrays were freed. Thread-safe.
class EmulatedDevice {
 public:
  // Captured work, which may be replayed any number of times.
  using Graph = std::vector<std::function<void()>>;

  static EmulatedDevice& Get();

  // Starts over, with a seed for the order of work and without a failure.
  void Reset(uint32_t seed);

  // Whether there is a device at all, for DeviceCount.
  void SetPresent(bool present) { present_ = present; }
  bool present() const { return present_; }
  // Makes one of the next calls that can fail fail: 0 is the next one; -1: none.
  void FailCall(int64_t number);
  // From now on, work that is queued on `stream` does not run but becomes part of a graph, as in CUDA. Calls that
  // cannot be captured, or may wait for work outside of the graph, fail and invalidate the graph.
  void BeginCapture(void* stream);
  // Returns: null if the graph was invalidated.
  std::unique_ptr<Graph> EndCapture(void* stream);
  void Replay(const Graph& graph, void* stream);

  int64_t synchronised() const;  // calls of Synchronise since Reset, as the next
  int64_t allocations() const;   // of device memory
  int64_t attends() const;
  int64_t bytes_held() const;  // of device memory, now; when it was last freed on the device
  int64_t calls() const;       // that can fail

  // Runs all that is queued. "" or what went wrong.
  std::string Finish();

  std::unique_ptr<Runtime> NewRuntime();

 private:
  friend class EmulatedRuntime;
  struct Event {
    uint64_t recorded = 0, done = 0;
  };
  struct Op {
    std::function<void()> run;
    Event* awaited = nullptr;
    uint64_t version = 0;
  };
  struct Stream {
    std::deque<Op> ops;
    std::unique_ptr<Graph> capture;  // null: none
    bool spoilt = false;             // the capture is
    bool deleted = false;
    bool lazy = false;
  };

  EmulatedDevice();
  std::string Fails(const char* what);
  // The same for a call that cannot be captured.
  std::string FailsOn(void* stream, const char* what);
  Stream& At(void* stream);
  void Queue(void* stream, std::function<void()> run);
  void SomeWork();
  // Lets some streams idle, so that work that must be waited for is not done by chance.
  void LetSomeIdle();
  // Runs the first op of some stream that can continue. Returns: false if none can.
  bool Step();
  std::string RunUntil(const std::function<bool()>& done);
  void* Take(int64_t bytes);
  void GiveBack(void* data);
  int64_t SizeOf(const void* data) const;
  // Throws unless all of it is device memory that was given out and is not freed.
  void ExpectHeld(const void* data, int64_t bytes) const;
  void ExpectHeld(const AttendProblem& problem, const AttendPlan& plan, const void* workspace) const;

  mutable std::recursive_mutex mutex_;
  std::mt19937 random_;
  std::map<void*, std::unique_ptr<Stream>> streams_;
  std::map<void*, std::unique_ptr<Event>> events_;
  char* arena_ = nullptr;
  std::map<int64_t, int64_t> taken_;  // place in the arena: bytes
  std::string failure_;
  bool present_ = true;
  int64_t fail_in_ = -1, synchronised_ = 0, allocations_ = 0, attends_ = 0, held_ = 0, calls_ = 0;
};

}  // namespace mneme::cuda

#endif  // MNEME_TESTS_ATTENTION_CUDA_EMULATED_RUNTIME_H_
