#ifndef MNEME_MEMORY_MIXED_TASKS_H_
#define MNEME_MEMORY_MIXED_TASKS_H_

#include <cstddef>

#include "base/mutex.h"

namespace mneme {

// Hands out tasks of two kinds: scans, which first read at the memory's speed and then compute, and others, which
// compute alone. Threads that began with a scan each would read together, all waiting for memory, and then compute
// together while the memory is idle, from scan to scan. So where half of the threads are reading, the next one takes up
// some of the others first, and is out of step from then on. The rest of the others fill the end, when scans have run
// out. Thread-safe.
class MixedTasks {
 public:
  struct Task {
    bool is_scan;
    size_t number;  // from 0, of its kind
  };

  // width: how many threads there are.
  MixedTasks(size_t scans, size_t others, size_t width)
      : scans_(scans), others_(others), early_(width > 1 ? others / 2 : 0), width_(width) {}

  // The next task, for scans + others calls. If it is a scan, its thread counts as reading until it calls Read.
  Task Next() {
    MutexLock lock(&mutex_);
    const bool other_first = next_other_ < early_ && 2 * reading_ >= width_;
    if (next_scan_ < scans_ && !other_first) {
      ++reading_;
      return {true, next_scan_++};
    }
    if (next_other_ < others_) return {false, next_other_++};
    ++reading_;
    return {true, next_scan_++};
  }

  // A scan has read what it had to.
  void Read() {
    MutexLock lock(&mutex_);
    --reading_;
  }

 private:
  const size_t scans_;
  const size_t others_;
  const size_t early_;  // so many of the others may come before scans
  const size_t width_;
  Mutex mutex_;  // guards the rest
  size_t next_scan_ = 0;
  size_t next_other_ = 0;
  size_t reading_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_MIXED_TASKS_H_
