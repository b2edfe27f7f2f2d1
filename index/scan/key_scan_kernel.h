// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_KEY_SCAN_KERNEL_H_
#define MNEME_INDEX_SCAN_KEY_SCAN_KERNEL_H_

#include <stddef.h>
#include <stdint.h>

#include "base/dtype_enum.h"

// Internal to index/scan: the interface between the scan over keys and its kernels, one set for each instruction set
// (docs/design/kernels.md).

namespace mneme::key_scan {

// Rows that a kernel ranks at a time, one in each lane.
inline constexpr int kLanes = 16;

// One query during a scan; see Ranking (ranking.h) for the logit.
struct Query {
  const float* values;  // [dim]
  float scale;
  float soft_cap;
  float addend;
  float decay;
  const float* row_penalty;
  bool affine;           // whether logit = scale * dot + addend: there is neither soft cap nor decay
  float threshold;       // rows with a lower logit are dropped
  float min_scaled_dot;  // a row with a lower scale * dot has a logit below the threshold: saves computing tanh
};

// `count` consecutive encoded rows.
struct Rows {
  const char* data;
  int64_t row_bytes;
  int64_t count;
  int64_t first_row;  // number of the first of them
  DType dtype;
  int64_t dim;
};

// kLanes rows of which some reach a query's threshold.
struct RowHits {
  int64_t query;        // number of the query
  int64_t first_row;    // number of the row in lane 0
  const float* logits;  // [kLanes]
  uint32_t lanes;       // bit i: row first_row + i reaches the threshold
};

// Receives hits during a scan, and updates query.threshold and query.min_scaled_dot.
using HitCallback = void (*)(void* context, Query& query, const RowHits& hits);

// `columns` is scratch space of the kernels: f32 [dim + 1][kLanes], aligned to 64 bytes.
struct Kernels {
  const char* name;

  // Compares `count` queries with all rows.
  void (*scan)(const Rows& rows, Query* queries, int64_t count, float* columns, HitCallback on_hits, void* context);

  // dots[i] = query · rows[i] for kLanes encoded rows anywhere in RAM; the same bits as in `scan`.
  void (*dot)(DType dtype, int64_t dim, const char* const* rows, const float* query, float* columns, float* dots);
};

extern const Kernels kPlainKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// Returns: the kernels called `name` if this build has them and this CPU runs them, else null.
const Kernels* FindKernels(const char* name);

// Makes the process use `kernels`; null: the best for this CPU. For tests. Requires: no scan is running.
void UseKernelsForTesting(const Kernels* kernels);

}  // namespace mneme::key_scan

#endif  // MNEME_INDEX_SCAN_KEY_SCAN_KERNEL_H_
