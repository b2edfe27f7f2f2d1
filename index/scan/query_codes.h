// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_QUERY_CODES_H_
#define MNEME_INDEX_SCAN_QUERY_CODES_H_

#include <cstdint>

#include "index/scan/code_scan_kernel.h"

namespace mneme::codes {

// A query as integers: element d of the rotated query is about step * values[d]. docs/design/scan.md has the
// arithmetic.
struct QueryCode {
  float step;            // 0 if the query is zero or too small to matter
  int32_t sum;           // of the values
  double error_squared;  // square of the norm of (query - step * values); not finite if the query is not
};

// Rounds `query`, f32 [dim], which has been rotated (Rotate), as finely as `kernels` allow. values: [dim rounded up to
// a multiple of kTileDims], filled up with zeros.
QueryCode EncodeQuery(const float* query, int64_t dim, const Kernels& kernels, int8_t* values);

// Stores the values [dim] of query i of `count` where the kernels read them. Each group of kernels.group_queries
// queries (the last one may be smaller) is stored as
//   int8_t [dim / kTileDims][queries of the group][kTileDims / 4][value_copies][4]
// one group after the other. packed: [count * dim * value_copies].
inline void PackQueryValues(const Kernels& kernels, const int8_t* values, int64_t i, int64_t count, int64_t dim,
                            int8_t* packed) {
  const int64_t first = i / kernels.group_queries * kernels.group_queries;
  const int64_t size = count - first < kernels.group_queries ? count - first : kernels.group_queries;
  for (int64_t d = 0; d < dim; d += 4) {
    int8_t* to = packed + (first * dim + (d / kTileDims * size + (i - first)) * kTileDims + d % kTileDims) *
                              kernels.value_copies;
    for (int copy = 0; copy < kernels.value_copies; ++copy) __builtin_memcpy(to + 4 * copy, values + d, 4);
  }
}

}  // namespace mneme::codes

#endif  // MNEME_INDEX_SCAN_QUERY_CODES_H_
