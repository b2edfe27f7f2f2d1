// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_TILE_BACKWARD_H_
#define MNEME_MEMORY_ATTEND_TILE_BACKWARD_H_

#include "memory/attend/attend_backward.h"
#include "memory/attend/reported_rows.h"
#include "memory/attend/tile.h"

namespace mneme {

// The gradients of what one query head does with its rules, in double, as they are summed over queries.
struct HeadGradients {
  double memory_bias = 0;
  double gate = 0;
  double scale = 0;
};

// Where the gradients go that several tiles share.
struct TileSums {
  // [local rows of the sequence][PaddedDim], overwritten; null: not wanted.
  float* local_keys = nullptr;
  float* local_values = nullptr;
  HeadGradients* heads = nullptr;  // [group], overwritten
};

// Attends to the retrieved and the local rows of a tile again, writes the gradients of its queries and sums up the
// others. rows: null: no memory takes part.
void BackwardOfTile(const AttendBackwardRequest& request, const Sequence& sequence, const ReportedRows* rows,
                    const Tile& tile, const TileSums& sums);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_TILE_BACKWARD_H_
