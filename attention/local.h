// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_LOCAL_H_
#define MNEME_ATTENTION_LOCAL_H_

#include <cstdint>

#include "attention/local_mask.h"
#include "base/tensor.h"

namespace mneme {

// Which local rows a query sees. Query i of n sees local row j of m of the same sequence if
//   kNone           always
//   kCausal         j <= i + offset
//   kSlidingWindow  i + offset - window < j <= i + offset
//   kBits           bit j of bits[i * bits_stride …] is set; bit 0 is the least significant bit of the first byte
// The usual offset is m - n: the queries are the newest local rows.
struct LocalMask {
  using Kind = LocalMaskKind;

  Kind kind = Kind::kCausal;
  int64_t offset = 0;
  int64_t window = 0;
  const uint8_t* bits = nullptr;
  int64_t bits_stride = 0;  // bytes

  bool Visible(int64_t query, int64_t row) const;
};

// Dense attention over the local rows, of the query heads that share one KV head.
struct LocalProblem {
  // [query_count, group, key_dim], with the same rotary embedding as the local keys.
  const float* queries = nullptr;
  int64_t query_count = 0;
  int64_t first_query = 0;        // the number of queries[0] in the mask, if these are a part of a longer block
  int64_t group = 1;              // query heads
  RowTensor keys;                 // [rows, kv_heads, key_dim], f32, f16 or bf16
  RowTensor values;               // [rows, kv_heads, value_dim], likewise
  int64_t head = 0;               // the KV head
  int64_t row_begin = 0;          // the sequence's first local row in `keys` and `values`
  int64_t row_count = 0;          // m
  LocalMask mask;                 // its local row 0 is row_begin
  const float* scales = nullptr;  // [group]
  float soft_cap = 0;
};

// Writes output f32 [query_count, group, value_dim] and log_sum_exp f32 [query_count, group]. A query that sees no row
// gets the empty state (state.h). The bits of a query's result do not depend on the other queries.
void AttendLocal(const LocalProblem& problem, float* output, float* log_sum_exp);

}  // namespace mneme

#endif  // MNEME_ATTENTION_LOCAL_H_
