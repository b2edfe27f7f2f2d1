// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_SCAN_COUNTS_H_
#define MNEME_INDEX_SCAN_SCAN_COUNTS_H_

#include <cstdint>

namespace mneme {

// What scans did, for statistics. All numbers count pairs of a query and a row.
struct ScanCounts {
  int64_t by_code = 0;    // compared by the row's code
  int64_t reranked = 0;   // of these, pairs whose code decided nothing, so that the exact key was read
  int64_t by_key = 0;     // compared by the exact key alone: the newest rows, and rankings that codes cannot bound
  int64_t rescanned = 0;  // compared a second time, because the estimated threshold was too high
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_SCAN_COUNTS_H_
