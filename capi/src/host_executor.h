// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_HOST_EXECUTOR_H_
#define MNEME_CAPI_SRC_HOST_EXECUTOR_H_

#include <memory>

#include "base/parallel.h"
#include "mneme.h"

namespace mneme::capi {

// The host's own parallel-for as an Executor.
std::unique_ptr<Executor> MakeHostExecutor(mneme_parallel_for_fn parallel_for, void* context, size_t width);

// Runs tasks on `inner` (borrowed); an exception of a task reaches the caller of ParallelFor instead of ending the
// process on a worker thread.
std::unique_ptr<Executor> MakeCatchingExecutor(Executor& inner);

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_HOST_EXECUTOR_H_
