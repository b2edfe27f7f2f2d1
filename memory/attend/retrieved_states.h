// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_RETRIEVED_STATES_H_
#define MNEME_MEMORY_ATTEND_RETRIEVED_STATES_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "index/top_k.h"

namespace mneme {

// Attention states over the retrieved rows of one sequence, as a device computed them. A slot is a (query, head) of the
// sequence, numbered query * query_heads + head.
struct RetrievedStates {
  int64_t top_k = 0;               // the greatest of all heads
  std::vector<float> outputs;      // [slots][value_dim]
  std::vector<float> log_sum_exp;  // [slots]
  std::vector<Scored> rows;        // [slots][top_k], best first; the first `counts` of each slot
  std::vector<int32_t> counts;     // [slots]

  absl::Span<const Scored> RowsOf(size_t slot) const {
    return absl::MakeConstSpan(rows).subspan(slot * static_cast<size_t>(top_k), static_cast<size_t>(counts[slot]));
  }
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_RETRIEVED_STATES_H_
