// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_LOCAL_H_
#define MNEME_ATTENTION_LOCAL_H_

#include <cstdint>

#include "base/tensor.h"

namespace mneme {

// Which local rows a query sees. Query i of n and local row j of m of the same sequence:
//   kNone           all
//   kCausal         j <= i + offset
//   kSlidingWindow  i + offset - window < j <= i + offset
//   kBits           bit j of bits[i * bits_stride …] (least significant bit of the first byte is j = 0)
// The usual offset is m - n: the queries are the newest local rows.
struct LocalMask {
  enum class Kind : uint8_t { kNone = 0, kCausal = 1, kSlidingWindow = 2, kBits = 3 };
  Kind kind = Kind::kCausal;
  int64_t offset = 0;
  int64_t window = 0;
  const uint8_t* bits = nullptr;
  int64_t bits_stride = 0;  // bytes

  bool Visible(int64_t query, int64_t row) const;
};

// Dense attention of one KV head's query group over the local rows.
struct LocalProblem {
  // Queries already as f32, rotated as the local keys are: queries[(i * group + g) * key_dim], i of `query_count`.
  const float* queries = nullptr;
  int64_t query_count = 0;
  int64_t first_query = 0;  // number, for the mask, of the first query given (a tile of a longer block)
  int64_t group = 1;
  RowTensor keys;                 // [m, kv_heads, key_dim]; row_begin.. below selects the sequence's rows
  RowTensor values;               // [m, kv_heads, value_dim]
  int64_t head = 0;               // KV head
  int64_t row_begin = 0;          // the sequence's first local row in `keys` and `values`
  int64_t row_count = 0;          // m
  LocalMask mask;                 // numbers local rows from 0 = row_begin
  const float* scales = nullptr;  // [group]
  float soft_cap = 0;
};

// Writes output f32 [query_count, group, value_dim] and log_sum_exp [query_count, group]. A query that sees no row gets
// the empty state. Deterministic, and independent of how queries are tiled: same bits for the same query.
void AttendLocal(const LocalProblem& problem, float* output, float* log_sum_exp);

}  // namespace mneme

#endif  // MNEME_ATTENTION_LOCAL_H_
