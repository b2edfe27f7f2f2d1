// SPDX-License-Identifier: Apache-2.0
#include "memory/background_thread.h"

#include <utility>

#include "base/floating_point.h"

namespace mneme {

BackgroundThread::BackgroundThread() : thread_([this] { Run(); }) {}

BackgroundThread::~BackgroundThread() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

void BackgroundThread::Schedule(Task task) {
  MutexLock lock(&mutex_);
  tasks_.push_back(std::move(task));
  changed_.NotifyOne();
}

BackgroundThread::Task BackgroundThread::WaitForTask() {
  MutexLock lock(&mutex_);
  while (!stopping_ && tasks_.empty()) changed_.Wait(&mutex_);
  if (stopping_) return nullptr;
  Task task = std::move(tasks_.front());
  tasks_.pop_front();
  return task;
}

void BackgroundThread::Run() {
  const FloatingPointScope default_environment;
  while (const Task task = WaitForTask()) {
    task([this] {
      MutexLock lock(&mutex_);
      return !stopping_;
    });
  }
}

}  // namespace mneme
