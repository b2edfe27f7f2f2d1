// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_RETRIEVED_STATES_H_
#define MNEME_MEMORY_ATTEND_RETRIEVED_STATES_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "index/top_k.h"

namespace mneme {

// Attention states over the retrieved rows of one sequence, as a device computed them. A pair is a (query, head) of the
// sequence, numbered query * query_heads + head.
struct RetrievedStates {
  int64_t top_k = 0;               // the greatest of all heads
  std::vector<float> outputs;      // [pairs][value_dim]
  std::vector<float> log_sum_exp;  // [pairs]
  std::vector<Scored> rows;        // [pairs][top_k], best first; the first `counts` of each pair
  std::vector<int32_t> counts;     // [pairs]

  absl::Span<const Scored> RowsOf(size_t pair) const {
    return absl::MakeConstSpan(rows).subspan(pair * static_cast<size_t>(top_k), static_cast<size_t>(counts[pair]));
  }
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_RETRIEVED_STATES_H_
