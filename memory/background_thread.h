// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_BACKGROUND_THREAD_H_
#define MNEME_MEMORY_BACKGROUND_THREAD_H_

#include <deque>
#include <functional>
#include <thread>

#include "base/mutex.h"

namespace mneme {

// A thread that runs tasks in the order in which they were scheduled. The destructor stops it: tasks that have not
// begun are discarded, and the one that runs is waited for. Thread-safe.
class BackgroundThread {
 public:
  // A task asks keep_going now and then, and returns early once that is false.
  using Task = std::function<void(const std::function<bool()>& keep_going)>;

  BackgroundThread();
  ~BackgroundThread();
  BackgroundThread(const BackgroundThread&) = delete;
  BackgroundThread& operator=(const BackgroundThread&) = delete;

  void Schedule(Task task);

 private:
  void Run();
  // Returns: the next task, or an empty one if the thread is to stop.
  Task WaitForTask();

  Mutex mutex_;
  CondVar changed_;  // tasks_ or stopping_ did
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_BACKGROUND_THREAD_H_
