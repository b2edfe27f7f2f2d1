// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_SEARCH_PLAN_H_
#define MNEME_MEMORY_ATTEND_SEARCH_PLAN_H_

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "base/parallel.h"
#include "index/scan/key_scan.h"
#include "memory/age_penalties.h"
#include "memory/attend/memory_view.h"
#include "memory/attend/shared_status.h"

namespace mneme {

// What all work items of one sequence's search read: the query vectors, and how they rank rows. A row's rank is its
// logit: scale * q·k, soft-capped, plus bias, less decay (Ranking). The containers take their bytes from `arena`, which
// outlives the plan.
struct SearchPlan {
  explicit SearchPlan(std::pmr::memory_resource* arena)
      : heads(arena), positions(arena), vectors(arena), plain_vectors(arena) {}

  const RetrieveRequest* request = nullptr;
  const Sequence* sequence = nullptr;
  const MemoryView* view = nullptr;
  int64_t queries = 0;                            // of the sequence, which number them from 0
  std::pmr::vector<int32_t> heads;                // query heads that retrieve rows, ascending
  std::pmr::vector<int64_t> positions;            // [queries]
  std::pmr::vector<float> vectors;                // [query_heads][queries][key_dim], rotated by the position policy
  std::pmr::vector<float> plain_vectors;          // kClamped: the same, not rotated
  std::shared_ptr<const AgePenalties> penalties;  // null: no head has decay
  SharedStatus* errors = nullptr;                 // of work items

  const float* Vector(int64_t head, int64_t query) const {
    return vectors.data() + (head * queries + query) * request->layer.key_dim;
  }
  const float* PlainVector(int64_t head, int64_t query) const {
    return plain_vectors.data() + (head * queries + query) * request->layer.key_dim;
  }
  DType stored_dtype() const { return sequence->memory->options().stored_dtype; }
  // Returns: the heads of `heads` that share one KV head.
  absl::Span<const int32_t> HeadsOf(int64_t kv_head) const;
  // Returns: how `query` of `head` makes logits of dot products with these rows.
  Ranking RankingOf(int64_t head, int64_t query, const VisibleRows& rows) const {
    if (!rows.pinned) return RankingOfUnpinned(head, query, rows.first_token);
    Ranking ranking;
    ranking.scale = request->heads[static_cast<size_t>(head)].scale;
    ranking.soft_cap = request->layer.soft_cap;
    return ranking;
  }
  // The same for rows that are not pinned. Row 0 is token `first_token`.
  Ranking RankingOfUnpinned(int64_t head, int64_t query, int64_t first_token) const {
    const HeadRule& rule = request->heads[static_cast<size_t>(head)];
    Ranking ranking;
    ranking.scale = rule.scale;
    ranking.soft_cap = request->layer.soft_cap;
    ranking.addend = request->use_memory_bias ? rule.memory_bias : 0.0f;
    if (rule.decay > 0) {
      ranking.decay = rule.decay;
      ranking.row_penalty = penalties->ForRows(positions[static_cast<size_t>(query)], first_token);
    }
    return ranking;
  }
};

// Fills in everything but request, sequence, view and errors, which the caller has set. Leaves `heads` empty if there
// is nothing to search: no query, no visible row or no head that retrieves.
// Errors: InvalidArgument if decay would need a table over 2^31 ages or more.
absl::Status FillSearchPlan(SearchPlan& plan, Executor& executor);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_SEARCH_PLAN_H_
