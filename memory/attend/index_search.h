// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_INDEX_SEARCH_H_
#define MNEME_MEMORY_ATTEND_INDEX_SEARCH_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "memory/attend/search_plan.h"

namespace mneme {

// An index over consecutive sealed tokens, and the part of them that the sequence may see.
struct VisibleRun {
  std::shared_ptr<IndexRun> run;
  int64_t token_begin = 0;
  int64_t token_end = 0;
};

// Has the index give candidates for queries [query_begin, query_end) of `heads`, which share KV head `kv_head`, and
// ranks these by their exact keys. Where the index would give most of its rows or gives too few, an exact scan replaces
// it. top: [heads][queries], receives the best rows.
absl::Status SearchIndex(const SearchPlan& plan, const VisibleRun& visible, int64_t kv_head,
                         absl::Span<const int32_t> heads, int64_t query_begin, int64_t query_end, TopK* top);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_INDEX_SEARCH_H_
