// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_TILE_BACKWARD_H_
#define MNEME_MEMORY_ATTEND_TILE_BACKWARD_H_

#include "memory/attend/backward_request.h"
#include "memory/attend/reported_rows.h"
#include "memory/attend/tile.h"

namespace mneme {

// The gradients with respect to one query head's rules, in double, as they are summed over queries.
struct HeadGradients {
  double memory_bias = 0;
  double gate = 0;
  double scale = 0;
};

// The gradients to which several tiles contribute: this tile's part.
struct TileSums {
  // [local rows of the sequence][PaddedDim], overwritten; null: not wanted.
  float* local_keys = nullptr;
  float* local_values = nullptr;
  HeadGradients* heads = nullptr;  // [group], overwritten
};

// Repeats the forward pass of a tile, writes the gradients of its queries, and sets `sums` to the other gradients.
// rows: the sequence's; null: it retrieved none.
void BackwardOfTile(const AttendBackwardRequest& request, const Sequence& sequence, const ReportedRows* rows,
                    const Tile& tile, const TileSums& sums);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_TILE_BACKWARD_H_
