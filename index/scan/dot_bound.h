// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_DOT_BOUND_H_
#define MNEME_INDEX_SCAN_DOT_BOUND_H_

#include <bit>
#include <cstdint>

#include "index/scan/code_scan_kernel.h"

namespace mneme::codes {

// What a code says about a dot product: it is at most estimate + margin, and at least estimate - margin less twice
// MeanDots::RoundingError (the mean's product is raised by that error).
struct DotBound {
  float estimate;
  float margin;
};

// Of the query and row r of a block; the formula of code_scan_kernel.h.
inline DotBound BoundDot(const Query& query, const BlockHits& hits, int r) {
  const BlockHeader& header = *hits.header;
  const float scale = 1 / std::bit_cast<float>(static_cast<uint32_t>(header.inverse_scale[r]) << 16);
  const float margin = header.error * query.error_weight + header.norm * query.norm_weight;
  return {.estimate = hits.mean_dot + static_cast<float>(hits.sums[r]) * query.step * scale, .margin = margin * scale};
}

}  // namespace mneme::codes

#endif  // MNEME_INDEX_SCAN_DOT_BOUND_H_
