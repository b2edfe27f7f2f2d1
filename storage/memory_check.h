// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_MEMORY_CHECK_H_
#define MNEME_STORAGE_MEMORY_CHECK_H_

#include "absl/status/status.h"

namespace mneme {

// RocksDB does not survive an allocation that fails while it writes: the exception leaves its queue of writers
// half-joined, so that the next write waits for ever, and one in its own threads ends the process. So every write
// begins with this.
//
// Returns: OK if the process can have as much more memory as a write takes. ResourceExhausted otherwise; then nothing
// was touched and the same call can be made again. Takes some microseconds. Another thread may still take the memory
// meanwhile.
absl::Status CheckMemoryForWrite();

}  // namespace mneme

#endif  // MNEME_STORAGE_MEMORY_CHECK_H_
