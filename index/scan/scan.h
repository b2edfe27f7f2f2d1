// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_SCAN_H_
#define MNEME_INDEX_SCAN_SCAN_H_

#include <cmath>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "index/key_rows.h"
#include "index/top_k.h"

namespace mneme {

// How a query ranks a row:
//   logit = cap(scale * q·k) + addend - decay * row_penalty[row],   cap(s) = soft_cap * tanh(s / soft_cap), 0: s
// row_penalty has one entry a row of the KeyRows scanned (indexed by row, not by token) and may be null if
// decay is 0.
struct Ranking {
  float scale = 1;
  float soft_cap = 0;
  float addend = 0;
  float decay = 0;
  const float* row_penalty = nullptr;

  float Logit(float dot, int64_t row) const {
    const float logit = dot * scale;
    return Place(soft_cap > 0 ? soft_cap * std::tanh(logit / soft_cap) : logit, row);
  }

  // With scale > 0: not below the Logit of any dot product up to `dot`.
  float LogitUpTo(float dot, int64_t row) const {
    // Rounding keeps the order of what it rounds, but for the tanh's.
    const float logit = dot * scale;
    return Place(soft_cap > 0 ? soft_cap * std::tanh(logit / soft_cap) + 1e-6f * soft_cap : logit, row);
  }

  // The least scale * q·k with which a row of at least `penalty` can have a Logit that reaches `threshold`, with room
  // for every rounding on the way there; -infinity if none can be given, +infinity if no row can reach it.
  double LeastScaledDot(float threshold, float penalty) const;

 private:
  // Adds what does not depend on the dot product.
  float Place(float logit, int64_t row) const {
    logit = logit + addend;
    return decay != 0 ? logit - decay * row_penalty[row] : logit;
  }
};

// Pushes rows [row_begin, row_end) of `keys` into top[i] for each query i, as token index first_token + row.
// queries: f32 [count, dim], row-major; rankings and top: [count] each. All queries share each load of keys.
// The dot product of a (query, row) pair has the same bits whatever the range, the count and the thread.
void ScanTopK(const KeyRows& keys, int64_t row_begin, int64_t row_end, int64_t first_token, const float* queries,
              int64_t count, const Ranking* rankings, TopK* top);

// dots[i] = query · key, for row rows[i] or for the encoded row at keys[i]; the same bits as ScanTopK's. Fastest by
// sixteens.
void DotRows(const KeyRows& keys, absl::Span<const int64_t> rows, const float* query, float* dots);
void DotKeys(DType dtype, int64_t dim, absl::Span<const char* const> keys, const float* query, float* dots);

// The kernels chosen for this CPU, once a process: "plain", "avx2" or "avx512". The environment variable
// MNEME_KERNELS names a lesser one for tests; one that the CPU lacks or nobody knows is ignored, with a note in the
// returned text.
absl::string_view ScanKernelName();

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_SCAN_H_
