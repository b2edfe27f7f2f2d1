// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_DEVICE_TRAY_H_
#define MNEME_MEMORY_DEVICE_DEVICE_TRAY_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "memory/attend/request.h"
#include "memory/device/device.h"
#include "memory/device/mirror.h"

namespace mneme {

// Rows that the queries of one call want in all, queries * heads * top_k: what its workspace grows with.
inline constexpr int64_t kMostCandidates = int64_t{1} << 18;

// The small arrays of one call, side by side: inputs go to the device in one copy, outputs come back in one. Each has
// the same place in the desk's memory on both sides.
class DeviceTray {
 public:
  template <typename T>
  struct Place {
    int64_t at = 0;
  };

  // Before Lay: all inputs, then all outputs.
  template <typename T>
  Place<T> Input(int64_t n) {
    const Place<T> place{input_bytes_};
    input_bytes_ = output_end_ = cuda::RoundUp(input_bytes_ + n * static_cast<int64_t>(sizeof(T)), 256);
    return place;
  }
  template <typename T>
  Place<T> Output(int64_t n) {
    const Place<T> place{output_end_};
    output_end_ = cuda::RoundUp(output_end_ + n * static_cast<int64_t>(sizeof(T)), 256);
    return place;
  }

  // Room for it on the desk.
  absl::Status Lay(DeviceDesk& desk);
  // Or where the caller has it.
  void Lay(char* host, char* device) {
    host_ = host;
    device_ = device;
  }
  int64_t input_bytes() const { return input_bytes_; }

  template <typename T>
  T* Host(Place<T> place) const {
    return reinterpret_cast<T*>(host_ + place.at);
  }
  template <typename T>
  T* OnDevice(Place<T> place) const {
    return reinterpret_cast<T*>(device_ + place.at);
  }
  // Queues on `stream`, the desk's or another: inputs, the problem, outputs; and records the desk's event behind them.
  // The problem's pointers into the tray are OnDevice's. ResourceExhausted: nothing was queued.
  absl::Status Queue(DeviceDesk& desk, Device& device, const cuda::AttendProblem& problem,
                     const cuda::AttendBounds& bounds, void* stream);

 private:
  int64_t input_bytes_ = 0, output_end_ = 0;
  char* host_ = nullptr;
  char* device_ = nullptr;
};

// What is the same for every problem made of the request: shapes, types, and how logits bend. `query_type` is that of
// queries and local rows, `stored` that of the memories' rows.
cuda::AttendProblem ProblemOf(const RetrieveRequest& request, int64_t tokens, size_t batch, int64_t top_k,
                              DType query_type, DType stored);

// How the request's heads rank rows, in a tray.
class RankingTray {
 public:
  // Before Lay. `problem` has tokens and heads.
  RankingTray(const RetrieveRequest& request, const cuda::AttendProblem& problem, DeviceTray& tray);
  // After Lay: the per-head arrays, and the problem's pointers to them.
  void Fill(const RetrieveRequest& request, const DeviceTray& tray, cuda::AttendProblem& problem) const;
  // [tokens], to be filled by the caller where problem.decay is set: positions less the gap of the sequence's view.
  int64_t* Positions(const DeviceTray& tray) const { return tray.Host(positions_); }

 private:
  DeviceTray::Place<float> scale_, bias_, decay_;
  DeviceTray::Place<int32_t> top_k_;
  DeviceTray::Place<int64_t> positions_;
  bool decays_ = false;
};

// The locks of several mirrors, each once, in the order of their addresses; given back when this goes.
class MirrorLocks {
 public:
  MirrorLocks() = default;
  ~MirrorLocks() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (size_t i = 0; i < taken_; ++i) mirrors_[i]->Unlock();
  }
  MirrorLocks(const MirrorLocks&) = delete;
  MirrorLocks& operator=(const MirrorLocks&) = delete;

  void Add(MemoryMirror* mirror) { mirrors_.push_back(mirror); }
  void Take() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    std::sort(mirrors_.begin(), mirrors_.end());
    mirrors_.erase(std::unique(mirrors_.begin(), mirrors_.end()), mirrors_.end());
    for (MemoryMirror* mirror : mirrors_) mirror->Lock();
    taken_ = mirrors_.size();
  }
  // All of them, once taken.
  void Forget() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (MemoryMirror* mirror : mirrors_) mirror->Forget();
  }
  // The same after a call on `stream` that failed on the way: what it has queued already still reads the rows, and the
  // desk's memory. So both go behind it, as far as the device can still be told.
  void ForgetBehind(DeviceDesk& desk, Device& device, void* stream) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    cuda::Runtime& runtime = device.runtime();
    if (runtime.Record(desk.event(), stream).empty()) {
      if (stream != desk.stream()) runtime.Wait(desk.stream(), desk.event());
      for (MemoryMirror* mirror : mirrors_) mirror->Release(desk.event()).IgnoreError();
    }
    Forget();
  }

 private:
  std::vector<MemoryMirror*> mirrors_;
  size_t taken_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_DEVICE_TRAY_H_
