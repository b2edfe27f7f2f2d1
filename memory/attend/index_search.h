// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_INDEX_SEARCH_H_
#define MNEME_MEMORY_ATTEND_INDEX_SEARCH_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "memory/attend/search_plan.h"
#include "memory/attend/visible_run.h"

namespace mneme {

// Has the index give candidates for queries [query_begin, query_end) of `heads`, which share KV head `kv_head`, and
// ranks these by their exact keys. An exact scan of the visible tokens replaces the index where the index would have to
// give all of its rows, gives fewer than the heads retrieve, or cannot rank as they do. top: [heads][queries], receives
// the best rows.
absl::Status SearchIndex(const SearchPlan& plan, const VisibleRun& visible, int64_t kv_head,
                         absl::Span<const int32_t> heads, int64_t query_begin, int64_t query_end, TopK* top);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_INDEX_SEARCH_H_
