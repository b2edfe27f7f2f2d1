// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_SEARCH_H_
#define MNEME_MEMORY_ATTEND_SEARCH_H_

#include "absl/status/status.h"

#include "base/parallel.h"
#include "memory/attend/request.h"

namespace mneme {

// Writes the top_k rows of every (query, head), for tensors in host memory. Results do not depend on the executor.
// Requires: the caller has checked shapes, offsets, the heads' rules and that queries are finite.
// Errors: DataLoss if rows are damaged; then no output is written.
absl::Status Search(const SearchRequest& request, Executor& executor);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_SEARCH_H_
