// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_PARALLEL_H_
#define MNEME_BASE_PARALLEL_H_

#include <cstddef>
#include <memory>

#include "absl/functional/function_ref.h"

namespace mneme {

// The seam through which all parallel work goes: the host's own pool, the engine's, or the calling
// thread alone. Thread-safe.
class Executor {
 public:
  virtual ~Executor() = default;

  // Runs task(0) … task(n - 1), each exactly once, in any order and on any threads, and returns when all
  // have ended. `task` must not throw and must not call ParallelFor of the same executor.
  virtual void ParallelFor(size_t n, absl::FunctionRef<void(size_t)> task) = 0;

  // How many tasks can run at once; a hint for cutting work.
  virtual size_t Width() const = 0;
};

// Runs everything on the calling thread.
Executor& InlineExecutor();

// A pool of `threads` - 1 workers; the caller of ParallelFor is the last one. threads >= 1. Several callers
// may use one pool at the same time; each waits for its own tasks only.
std::unique_ptr<Executor> MakeThreadPool(size_t threads);

}  // namespace mneme

#endif  // MNEME_BASE_PARALLEL_H_
