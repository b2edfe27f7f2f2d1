// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_SEGMENT_SEGMENT_CONTEXT_H_
#define MNEME_MEMORY_SEGMENT_SEGMENT_CONTEXT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#include "absl/strings/string_view.h"

#include "memory/segment/row_cache.h"

namespace mneme {

// What all segments of a store share. Segments own it jointly with the store, since a snapshot can outlive the store.
// Thread-safe.
struct SegmentContext {
  using LogFunction = std::function<void(absl::string_view)>;

  SegmentContext(size_t ram_budget_bytes, int64_t row_read_cost_bytes, LogFunction log_function)
      : cache(ram_budget_bytes), row_read_cost(row_read_cost_bytes), log(std::move(log_function)) {}

  // Counts bytes that a segment has freed. Many small arrays leave free pages in malloc's lists; once kTrimBytes were
  // freed, this returns them to the system. That walks the lists, so it is not done more often.
  void CountFreedBytes(size_t bytes);

  RowCache cache;
  const int64_t row_read_cost;            // see StoreOptions
  const LogFunction log;                  // may be empty
  std::atomic<int64_t> codes_loaded{0};   // in layers of a segment
  std::atomic<int64_t> codes_rebuilt{0};  // likewise; from the keys, because codes were missing or damaged
  std::atomic<int64_t> rows_read{0};      // rows that were read from disk one by one

 private:
  static constexpr size_t kTrimBytes = size_t{16} << 20;
  std::atomic<size_t> freed_bytes_{0};  // since the last trim
};

}  // namespace mneme

#endif  // MNEME_MEMORY_SEGMENT_SEGMENT_CONTEXT_H_
