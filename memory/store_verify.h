// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_STORE_VERIFY_H_
#define MNEME_MEMORY_STORE_VERIFY_H_

#include <cstdint>

#include "absl/status/status.h"

#include "memory/progress.h"
#include "memory/store_context.h"

namespace mneme {

struct VerifyReport {
  int64_t memories = 0;
  int64_t damaged_memories = 0;
  int64_t damaged_values = 0;
  int64_t damaged_indexes = 0;  // index blobs and codes
  int64_t bytes_read = 0;
};

// Reads everything that the memories of a store have on disk against its checksums; each damage is logged and counted.
// `progress` counts bytes.
// Errors: Cancelled; those of Database that say nothing about what is stored.
absl::Status VerifyStore(StoreContext& store, const Progress& progress, VerifyReport* report);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_VERIFY_H_
