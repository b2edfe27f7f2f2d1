// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_RETRIEVE_PLAN_H_
#define MNEME_MEMORY_ATTEND_RETRIEVE_PLAN_H_

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <vector>

#include "base/parallel.h"
#include "memory/attend/age_penalties.h"
#include "memory/attend/retrieve.h"
#include "memory/attend/shared_status.h"

namespace mneme {

// Everything the work items of one sequence's retrieval share: its queries as the keys want them, and how they rank
// rows. It lies in `memory`, which outlives it.
struct RetrievePlan {
  explicit RetrievePlan(std::pmr::memory_resource* memory)
      : heads(memory), positions(memory), vectors(memory), plain(memory) {}

  const RetrieveRequest* request = nullptr;
  const Sequence* sequence = nullptr;
  const MemoryView* view = nullptr;
  int64_t queries = 0;                  // of the sequence
  std::pmr::vector<int32_t> heads;      // query heads that have a memory
  std::pmr::vector<int64_t> positions;  // [queries]
  std::pmr::vector<float> vectors;      // [query_heads][queries][key_dim] as the keys want them
  std::pmr::vector<float> plain;        // kClamped: the same, not rotated
  std::shared_ptr<const AgePenalties> penalties;
  SharedStatus* errors = nullptr;  // of work items

  const float* Vector(int64_t head, int64_t query) const {
    return vectors.data() + (head * queries + query) * request->layer.key_dim;
  }
  const float* Plain(int64_t head, int64_t query) const {
    return plain.data() + (head * queries + query) * request->layer.key_dim;
  }
  Ranking RankingOf(int64_t head, int64_t query, const VisibleRows& rows) const {
    const HeadRule& rule = request->heads[static_cast<size_t>(head)];
    Ranking ranking;
    ranking.scale = rule.scale;
    ranking.soft_cap = request->layer.soft_cap;
    if (rows.pinned) return ranking;
    ranking.addend = request->joint ? rule.memory_bias : 0.0f;
    if (rule.decay > 0) {
      ranking.decay = rule.decay;
      ranking.row_penalty = penalties->ForRows(positions[static_cast<size_t>(query)], rows.first_token);
    }
    return ranking;
  }
};

// Fills in vectors and plain; the rest is there already.
void PrepareVectors(RetrievePlan& plan, Executor& executor);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_RETRIEVE_PLAN_H_
