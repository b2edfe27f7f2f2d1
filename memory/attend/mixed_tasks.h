// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_MIXED_TASKS_H_
#define MNEME_MEMORY_ATTEND_MIXED_TASKS_H_

#include <algorithm>
#include <cstddef>

namespace mneme {

// An order for tasks of two kinds: scans, which first read at the memory's speed and then compute, and others, which
// compute alone. Threads that began with a scan each would read together, all waiting for memory, and then compute
// together while the memory is idle, from scan to scan. So half of the threads begin with others and are out of step
// from then on. The rest of the others fill the end, when scans have run out. The order is fixed: a host that gives
// each task to a thread of its choice knows what it does.
class MixedTasks {
 public:
  struct Task {
    bool is_scan;
    size_t number;  // from 0, of its kind
  };

  // width: how many threads take tasks, in their order.
  MixedTasks(size_t scans, size_t others, size_t width)
      : scans_(scans),
        first_scans_(width > 1 ? std::min(scans, (width + 1) / 2) : scans),
        first_others_(width > 1 ? (others + 1) / 2 : 0) {}

  // The i-th of scans + others.
  Task At(size_t i) const {
    if (i < first_scans_) return {true, i};
    if (i < first_scans_ + first_others_) return {false, i - first_scans_};
    if (i < scans_ + first_others_) return {true, i - first_others_};
    return {false, i - scans_};
  }

 private:
  const size_t scans_;
  const size_t first_scans_;   // before any of the others
  const size_t first_others_;  // before the rest of the scans
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_MIXED_TASKS_H_
