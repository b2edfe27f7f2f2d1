// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_KEY_SCAN_H_
#define MNEME_INDEX_SCAN_KEY_SCAN_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "index/key_rows.h"
#include "index/key_source.h"
#include "index/scan/ranking.h"
#include "index/top_k.h"

// The scan over exact keys. It is the reference for every other search, and it scans the newest rows and small
// memories.

namespace mneme {

// Pushes rows [row_begin, row_end) of `keys` into top[i] for each query i, as token index first_token + row.
// queries: f32 [count, dim], row-major. rankings, top: [count]. All queries share each load of keys.
// The dot product of a (query, row) pair has the same bits whatever the range, the count and the thread.
void ScanTopK(const KeyRows& keys, int64_t row_begin, int64_t row_end, int64_t first_token, const float* queries,
              int64_t count, const Ranking* rankings, TopK* top);

// The same for keys that are not in RAM, with the same result. Reads every row of the range.
// Errors: those of `keys`; `top` then holds some of the rows.
absl::Status ScanTopK(KeySource& keys, int64_t row_begin, int64_t row_end, int64_t first_token, const float* queries,
                      int64_t count, const Ranking* rankings, TopK* top);

// dots[i] = query · (row rows[i] of `keys`), with the same bits as in ScanTopK. Fastest for multiples of 16 rows.
void DotRows(const KeyRows& keys, absl::Span<const int64_t> rows, const float* query, float* dots);

// dots[i] = query · keys[i], each an encoded row of `dim` elements; the same bits.
void DotKeys(DType dtype, int64_t dim, absl::Span<const char* const> keys, const float* query, float* dots);

// Returns: the name of the kernels chosen for this CPU, once for the process: "plain", "avx2" or "avx512". The
// environment variable MNEME_KERNELS names lesser kernels, for tests. If the CPU lacks them or the name is unknown, it
// is ignored and the returned text says so.
absl::string_view KeyScanKernelName();

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_KEY_SCAN_H_
