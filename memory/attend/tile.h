// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_TILE_H_
#define MNEME_MEMORY_ATTEND_TILE_H_

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "attention/local.h"
#include "memory/attend/request.h"

namespace mneme {

// The unit of attention work: queries [query_begin, query_end) of a sequence and the query heads that share one KV head
// (the group). The sequence's first query has number 0.
struct Tile {
  int64_t kv_head, query_begin, query_end;

  int64_t queries() const { return query_end - query_begin; }
};

// Attention states of a tile: for each (query, head) an output, and the log-sum-exp of the logits behind it. The state
// of no rows is empty: output 0, log-sum-exp -infinity (see attention/state.h).
struct TileStates {
  float* outputs;       // [queries][group][value_dim]
  float* log_sum_exps;  // [queries][group]
};

// The local attention of a tile as a problem of attention/local.h. It lies in `arena`, which outlives it, as the
// request does.
class LocalTile {
 public:
  // Requires: HasLocalRows(request, sequence).
  LocalTile(const AttendRequest& request, const Sequence& sequence, const Tile& tile, std::pmr::memory_resource* arena);
  LocalTile(const LocalTile&) = delete;
  LocalTile& operator=(const LocalTile&) = delete;

  const LocalProblem& problem() const { return problem_; }

 private:
  std::pmr::vector<float> queries_;  // [queries][group][key_dim]
  std::pmr::vector<float> scales_;   // [group]
  LocalProblem problem_;
};

// Whether the fusion uses local rows and the sequence has any.
bool HasLocalRows(const AttendRequest& request, const Sequence& sequence);

// Attends to the local rows. Without any, all states are empty.
void AttendLocalTile(const AttendRequest& request, const Sequence& sequence, const Tile& tile,
                     const TileStates& states);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_TILE_H_
