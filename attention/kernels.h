// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_KERNELS_H_
#define MNEME_ATTENTION_KERNELS_H_

#include <cstdint>

#include "attention/local.h"
#include "attention/retrieved.h"
#include "base/cpu.h"
#include "base/dtype.h"

// Internal to attention/ and its tests: the kernels of each target, and the plain data that crosses into them. The
// sources of a target (kernels_avx2.cc …) are compiled for it as a whole, so they call no inline function of any shared
// header: the linker would keep one copy of it for everybody, perhaps the one with AVX-512 inside.

namespace mneme {

// Local rows that are taken together. Tiles begin at multiples of this, counted from the sequence's first row; one bit
// of a uint64_t a row says what a query sees.
inline constexpr int64_t kLocalTile = 64;

struct LocalKernelArgs {
  const float* queries;  // [query_count][group][key_dim]
  int64_t query_count;
  int64_t first_query;
  int64_t group;
  const char* keys;   // local row 0 of the head
  int64_t key_bytes;  // from a row to the next; may be negative
  int64_t key_dim;
  DType key_dtype;
  const char* values;
  int64_t value_bytes;
  int64_t value_dim;
  DType value_dtype;
  int64_t row_count;
  LocalMask::Kind mask;
  int64_t mask_offset;  // both within ±2^61, so that no sum with a row's number overflows
  int64_t mask_window;
  const uint8_t* mask_bits;
  int64_t mask_bits_bytes;
  const float* scales;  // [group]
  float soft_cap;
  int64_t block_queries;  // queries taken together: at least 1
  float* scratch;         // LocalScratchFloats, aligned to 64 bytes
  float* output;          // [query_count][group][value_dim]
  float* log_sum_exp;     // [query_count][group]
};

// How many floats of scratch memory `args` needs (its scratch is not looked at), any target.
int64_t LocalScratchFloats(const LocalKernelArgs& args);

struct RetrievedKernelArgs {
  const float* logits;
  const void* const* value_rows;
  int64_t count;  // at least 1
  DType dtype;
  int64_t value_dim;
  float* output;
};

#define MNEME_DECLARE_ATTENTION_KERNELS(target)                           \
  void AttendLocal##target(const LocalKernelArgs& args);                  \
  float AttendRetrieved##target(const RetrievedKernelArgs& args);         \
  /* exp(x[i]) for n a multiple of 16, as the kernels compute it; for the \
   * tests. */                                                            \
  void ExpForTest##target(const float* x, int64_t n, float* result)

MNEME_DECLARE_ATTENTION_KERNELS(Plain);
#if defined(__x86_64__)
MNEME_DECLARE_ATTENTION_KERNELS(Avx2);
MNEME_DECLARE_ATTENTION_KERNELS(Avx512);
#endif

#undef MNEME_DECLARE_ATTENTION_KERNELS

// AttendLocal and AttendRetrieved on a given target, which the processor must have (CpuHas). `block_queries` 0: as
// AttendLocal chooses.
void AttendLocalOn(CpuTarget target, const LocalProblem& problem, int64_t block_queries, float* output,
                   float* log_sum_exp);
float AttendRetrievedOn(CpuTarget target, const float* logits, const void* const* value_rows, int64_t count,
                        DType dtype, int64_t value_dim, float* output);
void ExpForTestOn(CpuTarget target, const float* x, int64_t n, float* result);

}  // namespace mneme

#endif  // MNEME_ATTENTION_KERNELS_H_
