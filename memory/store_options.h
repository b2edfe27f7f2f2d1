// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_STORE_OPTIONS_H_
#define MNEME_MEMORY_STORE_OPTIONS_H_

#include <cstddef>
#include <cstdint>

#include "base/parallel.h"
#include "storage/database.h"

namespace mneme {

struct StoreOptions {
  DatabaseOptions database;
  Executor* executor = nullptr;  // borrowed; null: the store makes a pool of `threads`
  int threads = 1;
  bool background = false;          // indices are built by a thread of the store; else by the call that commits
  bool ignore_index_blobs = false;  // index blobs are never parsed: every index is built from its rows
  size_t ram_budget_bytes = 0;      // rows and codes of sealed segments in RAM; 0: no limit
  // The bytes that a bulk read brings in the time of one single-row read. It decides when single rows of a segment that
  // is not in RAM cost more than the whole: about 10 KB from the page cache, 40 KB from a fast disk.
  int64_t row_read_cost = 16 << 10;
  int64_t disk_budget_bytes = 0;  // 0: no limit
  // Device bytes for copies of rows, which are then searched there; 0: no device. Where no device is found, the CPU
  // searches, and the log says so.
  int64_t device_budget_bytes = 0;
  int32_t device_ordinal = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_OPTIONS_H_
