// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_PROGRESS_H_
#define MNEME_MEMORY_PROGRESS_H_

#include <cstdint>
#include <functional>

namespace mneme {

// A host's callback during long work: done and total, in a unit that the function names. Returns: whether to go on;
// false cancels the work. May be empty.
using Progress = std::function<bool(int64_t done, int64_t total)>;

}  // namespace mneme

#endif  // MNEME_MEMORY_PROGRESS_H_
