#ifndef MNEME_MEMORY_SHARED_STATUS_H_
#define MNEME_MEMORY_SHARED_STATUS_H_

#include "absl/status/status.h"

#include "base/mutex.h"

namespace mneme {

// The first error of several threads.
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

}  // namespace mneme

#endif  // MNEME_MEMORY_SHARED_STATUS_H_
