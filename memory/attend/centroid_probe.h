// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_CENTROID_PROBE_H_
#define MNEME_MEMORY_ATTEND_CENTROID_PROBE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "index/centroid/centroid_index.h"
#include "memory/attend/search_plan.h"
#include "memory/attend/visible_run.h"

namespace mneme {

// SearchIndex for an index of kind centroid, which ranks rows itself. The heads of one query probe the same clusters.
// Requires: the rankings of all heads rise with the dot product.
absl::Status ProbeCentroids(const SearchPlan& plan, const VisibleRun& visible, const CentroidIndex& index,
                            int64_t kv_head, absl::Span<const int32_t> heads, int64_t query_begin, int64_t query_end,
                            TopK* top);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_CENTROID_PROBE_H_
