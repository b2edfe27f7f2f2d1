// SPDX-License-Identifier: Apache-2.0
#include "capi/src/host_executor.h"

#include <exception>

#include "base/floating_point.h"
#include "base/mutex.h"

namespace mneme::capi {
namespace {

class HostExecutor final : public Executor {
 public:
  HostExecutor(mneme_parallel_for_fn parallel_for, void* context, size_t width)
      : parallel_for_(parallel_for), context_(context), width_(width) {}

  size_t Width() const override { return width_; }

  void ParallelFor(size_t n, absl::FunctionRef<void(size_t)> task) override {
    if (n == 0) return;
    if (n == 1) {
      task(0);
      return;
    }
    const HostFloatingPointScope environment;
    parallel_for_(context_, n, RunTask, &task);
  }

 private:
  // On any thread of the host.
  static void RunTask(void* task, size_t i) {
    const FloatingPointScope default_environment;
    (*static_cast<absl::FunctionRef<void(size_t)>*>(task))(i);
  }

  const mneme_parallel_for_fn parallel_for_;
  void* const context_;
  const size_t width_;
};

class CatchingExecutor final : public Executor {
 public:
  explicit CatchingExecutor(Executor& inner) : inner_(inner) {}

  size_t Width() const override { return inner_.Width(); }

  void ParallelFor(size_t n, absl::FunctionRef<void(size_t)> task) override {
    Mutex mutex;
    std::exception_ptr first;
    inner_.ParallelFor(n, [&](size_t i) {
      try {
        task(i);
      } catch (...) {
        MutexLock lock(&mutex);
        if (first == nullptr) first = std::current_exception();
      }
    });
    if (first != nullptr) std::rethrow_exception(first);
  }

 private:
  Executor& inner_;
};

}  // namespace

std::unique_ptr<Executor> MakeHostExecutor(mneme_parallel_for_fn parallel_for, void* context, size_t width) {
  return std::make_unique<HostExecutor>(parallel_for, context, width);
}

std::unique_ptr<Executor> MakeCatchingExecutor(Executor& inner) {
  return std::make_unique<CatchingExecutor>(inner);
}

}  // namespace mneme::capi
