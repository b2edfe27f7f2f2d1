// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_QUERY_CODES_H_
#define MNEME_INDEX_SCAN_QUERY_CODES_H_

#include <cstdint>

#include "index/scan/code_kernel.h"

namespace mneme::codes {

// A query in whole numbers: element d stands for step * values[d]. docs/design/scan.md has the arithmetic.
struct QueryCode {
  float step;     // 0 if the query is all zero, or too small to matter
  int32_t sum;    // of the values
  double error2;  // square of the norm of what the values leave out; not finite if the query is not
};

// Codes `query` [dim], rotated already, as finely as `kernels` can take it. values: [dim up to a multiple of 16], zero
// behind dim.
QueryCode EncodeQuery(const float* query, int64_t dim, const Kernels& kernels, int8_t* values);

}  // namespace mneme::codes

#endif  // MNEME_INDEX_SCAN_QUERY_CODES_H_
