// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_TILE_FUSION_H_
#define MNEME_MEMORY_ATTEND_TILE_FUSION_H_

#include <cstdint>
#include <memory_resource>
#include <optional>
#include <vector>

#include "absl/types/span.h"

#include "memory/attend/gathered_rows.h"
#include "memory/attend/memory_view.h"
#include "memory/attend/retrieved_states.h"
#include "memory/attend/tile.h"

namespace mneme {

// One sequence, and what a search retrieved for it: rows (view, top and values), the states that a device made of them
// (device_states), or nothing.
struct SequenceInputs {
  const AttendRequest* request;
  const Sequence* sequence;
  const RetrievedStates* device_states = nullptr;  // null: none
  std::optional<MemoryView> view;                  // none: no memory, or no visible row
  std::pmr::vector<TopK> top;                      // [queries][query_heads]; with a view
  GatheredRows values;                             // of the rows in `top`
};

// Attends to the retrieved rows of a tile, fuses the states with those of local attention and writes the outputs.
class TileFusion {
 public:
  // Takes all bytes that it needs from `arena` at once, because an arena serves one thread and the other functions may
  // run on any. `inputs` and `arena` outlive the object.
  TileFusion(SequenceInputs& inputs, const Tile& tile, std::pmr::memory_resource* arena);

  // Finds the values of the first query's rows and prefetches them. Requires: the search of this KV head has ended.
  void LocateValues();

  // Requires: LocateValues has run. local: the states of local attention; they are overwritten.
  void Fuse(const TileStates& local);

 private:
  // The retrieved rows of one (query, head).
  struct Retrieved {
    Retrieved(size_t capacity, std::pmr::memory_resource* arena) : values(arena), logits(arena) {
      values.reserve(capacity);
      logits.reserve(capacity);
    }
    absl::Span<const Scored> rows;
    std::pmr::vector<const void*> values;  // [rows]
    std::pmr::vector<float> logits;        // [rows]
  };

  int64_t HeadOf(int64_t g) const;
  // The same for one (query, head) of the tile.
  void LocateValuesOf(int64_t query, int64_t g);
  // Writes memory_output_. Returns: the log-sum-exp over the retrieved rows; sets *rows to them.
  float AttendRetrievedRows(int64_t query, int64_t g, absl::Span<const Scored>* rows);
  void FuseOne(int64_t query, int64_t g, const TileStates& local);

  SequenceInputs& inputs_;
  const Tile tile_;
  const bool retrieves_;  // whether inputs_ has rows
  std::pmr::vector<float> memory_output_;
  std::pmr::vector<Retrieved> retrieved_;  // [group], of each head's next query
};

// Writes the retrieved rows of one (query, head), padded, where the request asks for them. slot: query * query_heads +
// head, with the query numbered in the batch.
void ReportRetrieved(const AttendRequest& request, int64_t slot, absl::Span<const Scored> rows);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_TILE_FUSION_H_
