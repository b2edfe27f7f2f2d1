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
// Synchronise fail from then on, as on a device. Thread-safe.
class EmulatedDevice {
 public:
  static EmulatedDevice& Get();

  // Begins anew: a seed for the order of work, no failure.
  void Reset(uint32_t seed);

  // Whether there is a device at all, for DeviceCount.
  void SetPresent(bool present) { present_ = present; }
  bool present() const { return present_; }
  // Makes the `number`-th call from now on that can fail (0: the next) fail; -1: none.
  void FailCall(int64_t number);
  // Streams for which IsCaptured is true.
  void SetCaptured(void* stream, bool captured);

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
    bool captured = false;
    bool deleted = false;
    bool lazy = false;
  };

  EmulatedDevice();
  std::string Fails(const char* what);
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
