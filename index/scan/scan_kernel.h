// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_SCAN_KERNEL_H_
#define MNEME_INDEX_SCAN_SCAN_KERNEL_H_

// Internal: what scan.cc and the kernels of each instruction set share. The kernels are compiled for CPUs that
// the process may not run on, so this header holds plain data only: an inline function here could be emitted
// with AVX-512 instructions and picked by the linker for everybody.

#include <stddef.h>
#include <stdint.h>

namespace mneme::scan {

inline constexpr int kLanes = 16;

// Element types, numbered as mneme::DType.
enum Element : int { kF32 = 0, kF16 = 1, kBF16 = 2, kI8 = 3 };

// One query during a scan. The logit of row r is
//   cap(scale * dot) + addend - decay * row_penalty[r], the last term only if decay is not 0.
struct Query {
  const float* values;  // [dim]
  float scale;
  float soft_cap;
  float addend;
  float decay;
  const float* row_penalty;
  bool plain;       // neither soft cap nor decay
  float threshold;  // rows whose logit is below it are dropped
  float gate;       // a row whose scale * dot is below it has a logit below the threshold: spares the tanh of soft_cap
};

// Gets the logits of kLanes rows from `row` on, those set in `lanes` being at or above the threshold of query
// `number`, whose threshold and gate it brings up to date.
using Sink = void (*)(void* context, int64_t number, Query& query, int64_t row, const float* logits, uint32_t lanes);

// `count` consecutive rows of `dim` elements, the first one having the number `row`.
struct Rows {
  const char* data;
  int64_t row_bytes;
  int64_t count;
  int64_t row;
  Element element;
  int64_t dim;
};

// The kernels for one instruction set. `lanes` is their scratch: f32 [dim + 1, kLanes], 64-byte aligned.
struct Kernels {
  const char* name;

  // Scores all queries against all rows.
  void (*scan)(const Rows& rows, Query* queries, int64_t count, float* lanes, Sink sink, void* context);

  // dots[i] = query · rows[i] for kLanes rows that may lie anywhere: the same bits as `scan` works with.
  void (*dot)(Element element, int64_t dim, const char* const* rows, const float* query, float* lanes, float* dots);
};

extern const Kernels kPlainKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// `name` among those this build has and this CPU can run, else null.
const Kernels* FindKernels(const char* name);

// Makes the process use `kernels`; null: the best of this CPU again. For tests, while nothing scans.
void UseKernelsForTesting(const Kernels* kernels);

}  // namespace mneme::scan

#endif  // MNEME_INDEX_SCAN_SCAN_KERNEL_H_
