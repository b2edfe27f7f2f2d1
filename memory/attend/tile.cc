// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/tile.h"

#include <algorithm>
#include <memory_resource>
#include <vector>

#include "attention/state.h"
#include "base/scratch.h"

namespace mneme {

bool HasLocalRows(const AttendRequest& request, const Sequence& sequence) {
  return request.fusion != Fusion::kMemoryOnly && request.local_keys.data != nullptr &&
         sequence.local_end > sequence.local_begin;
}

void AttendLocalTile(const AttendRequest& request, const Sequence& sequence, const Tile& tile,
                     const TileStates& states) {
  const LayerCard& layer = request.retrieve.layer;
  const int64_t group = layer.group();
  const auto dim = static_cast<size_t>(layer.key_dim);
  if (!HasLocalRows(request, sequence)) {
    std::fill_n(states.outputs, tile.queries() * group * layer.value_dim, 0.0f);
    std::fill_n(states.log_sum_exps, tile.queries() * group, kEmptyLogSumExp);
    return;
  }
  Scratch scratch;
  std::pmr::vector<float> queries(static_cast<size_t>(tile.queries() * group) * dim, &scratch);
  std::pmr::vector<float> scales(static_cast<size_t>(group), &scratch);
  for (int64_t g = 0; g < group; ++g) {
    const int64_t head = tile.kv_head * group + g;
    scales[static_cast<size_t>(g)] = request.retrieve.heads[static_cast<size_t>(head)].scale;
    for (int64_t i = 0; i < tile.queries(); ++i) {
      const int64_t token = sequence.query_begin + tile.query_begin + i;
      ConvertToF32(request.query.dtype, request.query.Row(token, head),
                   queries.data() + static_cast<size_t>(i * group + g) * dim, dim);
    }
  }
  LocalProblem problem;
  problem.queries = queries.data();
  problem.query_count = tile.queries();
  problem.first_query = tile.query_begin;
  problem.group = group;
  problem.keys = request.local_keys;
  problem.values = request.local_values;
  problem.head = tile.kv_head;
  problem.row_begin = sequence.local_begin;
  problem.row_count = sequence.local_end - sequence.local_begin;
  problem.mask = request.mask;
  problem.mask.offset = sequence.mask_offset;
  if (problem.mask.bits != nullptr) problem.mask.bits += sequence.query_begin * request.mask.bits_stride;
  problem.scales = scales.data();
  problem.soft_cap = layer.soft_cap;
  AttendLocal(problem, states.outputs, states.log_sum_exps);
}

}  // namespace mneme
