// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_SHARED_STATUS_H_
#define MNEME_MEMORY_ATTEND_SHARED_STATUS_H_

#include <cstddef>
#include <new>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "base/mutex.h"
#include "base/out_of_memory.h"
#include "base/parallel.h"

namespace mneme {

// The first error of several threads. Thread-safe.
class SharedStatus {
 public:
  void Update(const absl::Status& status) {
    MutexLock lock(&mutex_);
    status_.Update(status);
  }
  absl::Status Get() const {
    MutexLock lock(&mutex_);
    return status_;
  }

 private:
  mutable Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

// Runs work(i) for all i < n on the executor's threads. Returns: the first error. If work throws bad_alloc:
// OutOfMemoryError(doing), for instance "read rows: out of memory".
inline absl::Status ParallelForStatus(Executor& executor, size_t n, absl::string_view doing,
                                      absl::FunctionRef<absl::Status(size_t)> work) {
  SharedStatus errors;
  executor.ParallelFor(n, [&](size_t i) {
    try {
      errors.Update(work(i));
    } catch (const std::bad_alloc&) {
      errors.Update(OutOfMemoryError(doing));
    }
  });
  return errors.Get();
}

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_SHARED_STATUS_H_
