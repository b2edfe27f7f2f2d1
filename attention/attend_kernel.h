// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_ATTEND_KERNEL_H_
#define MNEME_ATTENTION_ATTEND_KERNEL_H_

#include <stdint.h>

#include "attention/local_mask.h"
#include "base/dtype_enum.h"

// Internal to attention/ and its tests: the interface between attention and its kernels, one set for each instruction
// set (docs/design/kernels.md).

namespace mneme {

// Local rows are taken in tiles, which begin at multiples of this from the sequence's first row. One bit of a uint64_t
// for each row says whether a query sees it.
inline constexpr int64_t kLocalTile = 64;

// AttendLocal's LocalProblem as plain data.
struct LocalKernelArgs {
  const float* queries;  // [query_count][group][key_dim]
  int64_t query_count;
  int64_t first_query;
  int64_t group;
  const char* keys;   // local row 0 of the head
  int64_t key_bytes;  // from each row to the next; may be negative
  int64_t key_dim;
  DType key_dtype;
  const char* values;
  int64_t value_bytes;
  int64_t value_dim;
  DType value_dtype;
  int64_t row_count;
  LocalMaskKind mask;
  int64_t mask_offset;  // this and mask_window lie within ±2^61, so that sums with row numbers do not overflow
  int64_t mask_window;
  const uint8_t* mask_bits;
  int64_t mask_bits_bytes;  // from each query's bits to the next query's
  const float* scales;      // [group]
  float soft_cap;
  int64_t block_queries;  // queries taken together, at least 1
  float* scratch;         // f32 [LocalScratchFloats], aligned to 64 bytes
  float* output;          // [query_count][group][value_dim]
  float* log_sum_exp;     // [query_count][group]
};

// AttendLocalBackward's arguments as plain data.
struct LocalBackwardKernelArgs {
  LocalKernelArgs local;          // of the forward pass, without its outputs; scratch: [LocalBackwardScratchFloats]
  const float* log_sum_exp;       // [query_count][group]
  const float* output_gradients;  // [query_count][group][value_dim]
  const float* offsets;           // [query_count][group]
  // Null: not wanted.
  float* query_gradients;   // [query_count][group][key_dim]
  float* key_gradients;     // [row_count][PaddedDim(key_dim)], added to
  float* value_gradients;   // [row_count][PaddedDim(value_dim)], added to
  double* scale_gradients;  // [group], added to
};

// AttendRetrieved's arguments as plain data.
struct RetrievedKernelArgs {
  const float* logits;            // [count]
  const void* const* value_rows;  // [count]
  int64_t count;                  // at least 1
  DType dtype;
  int64_t value_dim;
  float* output;  // [value_dim]
};

struct AttendKernels {
  const char* name;
  void (*attend_local)(const LocalKernelArgs& args);
  float (*attend_retrieved)(const RetrievedKernelArgs& args);  // returns the log-sum-exp

  void (*attend_local_backward)(const LocalBackwardKernelArgs& args);
  // sum [dim] += the sum of weights[j] * rows[j] over encoded rows.
  void (*add_rows)(const float* weights, const void* const* rows, int64_t count, DType dtype, int64_t dim, float* sum);

  // result[i] = exp(x[i]) as the kernels compute it. For tests. Requires: n is a multiple of 16.
  void (*exp)(const float* x, int64_t n, float* result);
};

extern const AttendKernels kPlainAttendKernels;
#if defined(__x86_64__)
extern const AttendKernels kAvx2AttendKernels;
extern const AttendKernels kAvx512AttendKernels;
#endif

}  // namespace mneme

#endif  // MNEME_ATTENTION_ATTEND_KERNEL_H_
