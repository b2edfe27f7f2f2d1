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

// A device on the CPU, with the kernels' own text in the emulator. A program that links emulated_runtime.cc has one
// device of this sort: it stands behind OpenRuntime.
//
// It is as unkind as a device may be. What is queued on a stream runs later, one stream or the other going ahead as a
// random number has it, and only Synchronise makes sure; so whoever forgets to wait, or gives memory away too early,
// gets wrong numbers. Memory comes full of NaN and is filled with NaN when it is freed. Device memory cannot be read or
// written but by what is queued: the host that follows such a pointer is stopped by a signal. Work that fails makes
// Synchronise fail from then on, as on a device; so does a kernel whose rows, or whose own arrays, were freed.
// Thread-safe.
class EmulatedDevice {
 public:
  // What was captured of a stream, to be run as often as wished.
  using Graph = std::vector<std::function<void()>>;

  static EmulatedDevice& Get();

  // Begins anew: a seed for the order of work, no failure.
  void Reset(uint32_t seed);

  // Whether there is a device at all, for DeviceCount.
  void SetPresent(bool present) { present_ = present; }
  bool present() const { return present_; }
  // Makes the `number`-th call from now on that can fail (0: the next) fail; -1: none.
  void FailCall(int64_t number);
  // As CUDA captures: from now on what is queued on `stream` is not run but becomes part of a graph. What cannot be
  // part of one, and what may wait for anything outside of it, fails and spoils the graph.
  void BeginCapture(void* stream);
  // Null if the capture was spoilt.
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
  // The same of a call that no graph can have a part in.
  std::string FailsOn(void* stream, const char* what);
  Stream& At(void* stream);
  void Queue(void* stream, std::function<void()> run);
  void SomeWork();
  // Some streams do nothing while others can: what must be waited for is not there by chance.
  void LetSomeIdle();
  // Runs the first op of some stream that can go on; false if none can.
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
