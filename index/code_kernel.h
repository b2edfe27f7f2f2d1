#ifndef MNEME_INDEX_CODE_KERNEL_H_
#define MNEME_INDEX_CODE_KERNEL_H_

// Internal: what the scan over codes and its kernels for each instruction set share. As in scan_kernel.h, plain data
// only. The arithmetic is explained in docs/scan.md.

#include <stddef.h>
#include <stdint.h>

namespace mneme::codes {

inline constexpr int kBlockRows = 16;

// A code c stands for (c - kZeroCode) / inverse_scale, its row's; 1 … 127, so that AVX2 can sum two products in 16 bits.
inline constexpr int kZeroCode = 64;
inline constexpr int kGreatestCode = 63;  // of |c - kZeroCode|

// What a block's codes come with. Lengths are in steps of the row's own scale, where they hardly differ between rows.
struct alignas(64) Header {
  uint16_t inverse_scale[kBlockRows];  // bf16
  float error;                         // at least the norm of what any row's code leaves out
  float norm;                          // at least the norm of what any row's code stands for
};

// A block of kBlockRows rows, `dim` being a multiple of 16:
//   Header  header
//   uint8_t codes[dim / 4][kBlockRows][4]
inline constexpr int64_t BlockBytes(int64_t dim) {
  return dim * kBlockRows + static_cast<int64_t>(sizeof(Header));
}

// One query during a scan, its values apart (see Kernels). What row r can reach at most is
//   base + (step * (start + values · codes[r]) + error_weight * error + norm_weight * norm) / inverse_scale[r]
struct Query {
  int32_t start;  // -kZeroCode * (sum of values)
  float step;
  float inverse_step;  // infinity if the step is 0
  float base;
  float error_weight;
  float norm_weight;
  float gate;  // rows that cannot reach it are dropped
};

// Gets what kBlockRows rows from `row` on can reach at most; those set in `rows` are not below the gate of query
// `number`, which it may raise.
using Sink = void (*)(void* context, int64_t number, Query& query, int64_t row, const float* most, uint32_t rows);

struct Kernels {
  const char* name;
  int greatest_value;  // of a query's element
  int group;           // queries that share a load of keys

  // `count` consecutive blocks, the first one beginning with row `row`, against n queries. `values` holds theirs, group
  // after group, each [dim / 8][queries of the group][8]; the last group has what is left of n.
  void (*scan)(const char* blocks, int64_t count, int64_t row, int64_t dim, const int8_t* values, Query* queries,
               int64_t n, Sink sink, void* context);
};

// Where element d of query i of n lies in `values`.
inline int64_t ValueAt(int64_t i, int64_t d, int64_t dim, int64_t n, int64_t group) {
  const int64_t first = i / group * group;
  const int64_t size = n - first < group ? n - first : group;
  return first * dim + (d / 8 * size + (i - first)) * 8 + d % 8;
}

extern const Kernels kPlainKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512VnniKernels;
#endif
#if defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

}  // namespace mneme::codes

#endif  // MNEME_INDEX_CODE_KERNEL_H_
