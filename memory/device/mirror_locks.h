// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_MIRROR_LOCKS_H_
#define MNEME_MEMORY_DEVICE_MIRROR_LOCKS_H_

#include <algorithm>
#include <cstddef>
#include <vector>

#include "absl/status/status.h"

#include "base/status.h"
#include "memory/device/call_context.h"
#include "memory/device/mirror.h"

namespace mneme {

// The locks of several mirrors, each taken once and in the order of their addresses. The destructor releases them.
class MirrorLocks {
 public:
  MirrorLocks() = default;
  ~MirrorLocks() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (size_t i = 0; i < locked_; ++i) mirrors_[i]->Unlock();
  }
  MirrorLocks(const MirrorLocks&) = delete;
  MirrorLocks& operator=(const MirrorLocks&) = delete;

  void Add(MemoryMirror* mirror) { mirrors_.push_back(mirror); }
  void LockAll() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    std::sort(mirrors_.begin(), mirrors_.end());
    mirrors_.erase(std::unique(mirrors_.begin(), mirrors_.end()), mirrors_.end());
    for (MemoryMirror* mirror : mirrors_) mirror->Lock();
    locked_ = mirrors_.size();
  }

  // The following require: LockAll.

  // See MemoryMirror::ReleaseAfter.
  absl::Status ReleaseAllAfter(void* event) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (MemoryMirror* mirror : mirrors_) MNEME_RETURN_IF_ERROR(mirror->ReleaseAfter(event));
    return absl::OkStatus();
  }
  // See MemoryMirror::Clear.
  void ClearAll() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (MemoryMirror* mirror : mirrors_) mirror->Clear();
  }
  // The same after a call on `stream` that failed half-way. Work that it did queue still reads the rows and the
  // context's buffers, so both are freed behind that work, as far as the device still takes orders.
  void ClearAllBehind(CallContext& context, cuda::Runtime& runtime, void* stream) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (runtime.Record(context.event(), stream).empty()) {
      if (stream != context.stream()) runtime.Wait(context.stream(), context.event());
      for (MemoryMirror* mirror : mirrors_) mirror->ReleaseAfter(context.event()).IgnoreError();
    }
    ClearAll();
  }

 private:
  std::vector<MemoryMirror*> mirrors_;
  size_t locked_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_MIRROR_LOCKS_H_
