// SPDX-License-Identifier: Apache-2.0
#include "base/parallel.h"

#include <atomic>
#include <deque>
#include <thread>
#include <vector>

#include "base/floating_point.h"
#include "base/mutex.h"

namespace mneme {
namespace {

// Spins for some tens of microseconds until done() is true. Returns: whether it became true. The next call often comes
// within microseconds (the next phase of a step, the next layer), and waking a sleeping thread takes longer than that.
template <typename Done>
bool SpinUntil(const Done& done) {
  constexpr int kLooks = 2000;
  static const bool alone = std::thread::hardware_concurrency() == 1;  // then no other thread runs while this one spins
  for (int i = 0; i < kLooks && !alone; ++i) {
    if (done()) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
  }
  return done();
}

class Inline final : public Executor {
 public:
  void ParallelFor(size_t n, absl::FunctionRef<void(size_t)> task) override {
    for (size_t i = 0; i < n; ++i) task(i);
  }
  size_t Width() const override { return 1; }
};

// One call of ParallelFor. It lives on the caller's stack; the caller returns only when no worker uses it.
struct Job {
  Job(size_t count, absl::FunctionRef<void(size_t)> work) : n(count), task(work) {}

  const size_t n;
  const absl::FunctionRef<void(size_t)> task;
  std::atomic<size_t> next{0};
  std::atomic<size_t> workers_inside{0};  // written with the pool's mutex held

  void Run() {
    for (size_t i = next.fetch_add(1, std::memory_order_relaxed); i < n;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      task(i);
    }
  }
};

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(size_t threads) {
    for (size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { Work(); });
  }

  ~ThreadPool() override {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
    }
    due_.NotifyAll();
    for (std::thread& worker : workers_) worker.join();
  }

  size_t Width() const override { return workers_.size() + 1; }

  void ParallelFor(size_t n, absl::FunctionRef<void(size_t)> task) override {
    if (n <= 1 || workers_.empty()) {
      for (size_t i = 0; i < n; ++i) task(i);
      return;
    }
    Job job(n, task);
    {
      MutexLock lock(&mutex_);
      jobs_.push_back(&job);
      posted_.fetch_add(1, std::memory_order_relaxed);
    }
    due_.NotifyAll();
    job.Run();
    {
      MutexLock lock(&mutex_);
      std::erase(jobs_, &job);
      if (job.workers_inside == 0) return;
    }
    SpinUntil([&] { return job.workers_inside.load(std::memory_order_relaxed) == 0; });
    MutexLock lock(&mutex_);
    while (job.workers_inside != 0) left_.Wait(&mutex_);
  }

 private:
  void Work() {
    const FloatingPointScope default_environment;  // instead of the environment of the thread that made the pool
    mutex_.Lock();
    while (true) {
      if (!stopping_ && jobs_.empty()) {
        const size_t seen = posted_.load(std::memory_order_relaxed);
        mutex_.Unlock();
        SpinUntil([&] { return posted_.load(std::memory_order_relaxed) != seen; });
        mutex_.Lock();
      }
      while (!stopping_ && jobs_.empty()) due_.Wait(&mutex_);
      if (stopping_) break;
      Job* job = jobs_.front();
      ++job->workers_inside;
      mutex_.Unlock();
      job->Run();
      mutex_.Lock();
      // All of its tasks are taken, so no other worker should find the job.
      std::erase(jobs_, job);
      if (--job->workers_inside == 0) left_.NotifyAll();
    }
    mutex_.Unlock();
  }

  Mutex mutex_;
  CondVar due_;   // signalled for a new job, and when the pool ends
  CondVar left_;  // signalled when the last worker has left a job
  std::deque<Job*> jobs_ ABSL_GUARDED_BY(mutex_);
  std::atomic<size_t> posted_{0};  // jobs so far; written with the mutex held
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> workers_;
};

}  // namespace

Executor& InlineExecutor() {
  static Inline executor;
  return executor;
}

std::unique_ptr<Executor> MakeThreadPool(size_t threads) {
  return std::make_unique<ThreadPool>(threads);
}

}  // namespace mneme
