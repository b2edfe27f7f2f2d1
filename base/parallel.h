// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_PARALLEL_H_
#define MNEME_BASE_PARALLEL_H_

#include <cstddef>
#include <memory>

#include "absl/functional/function_ref.h"

namespace mneme {

// Runs all parallel work of the engine: on the host's own pool, on the engine's, or on the calling thread alone.
// Thread-safe.
class Executor {
 public:
  virtual ~Executor() = default;

  // Runs task(0) … task(n - 1), each exactly once, in any order and on any threads. Returns when all have ended.
  // Requires: `task` does not call ParallelFor of the same executor, and does not throw, except bad_alloc on an
  // executor that carries it back to the caller: InlineExecutor, and each store's (MakeCatchingExecutor in capi/src).
  virtual void ParallelFor(size_t n, absl::FunctionRef<void(size_t)> task) = 0;

  // How many tasks can run at once: a hint for dividing work.
  virtual size_t Width() const = 0;
};

// Runs everything on the calling thread.
Executor& InlineExecutor();

// Returns: a pool of `threads` - 1 workers; the caller of ParallelFor works, too. Several threads may call ParallelFor
// at the same time; each waits for its own tasks only. Requires: threads >= 1.
std::unique_ptr<Executor> MakeThreadPool(size_t threads);

}  // namespace mneme

#endif  // MNEME_BASE_PARALLEL_H_
