// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/tile.h"

#include <algorithm>

#include "attention/state.h"
#include "base/scratch.h"

namespace mneme {

bool HasLocalRows(const AttendRequest& request, const Sequence& sequence) {
  return request.fusion != Fusion::kMemoryOnly && request.local_keys.data != nullptr &&
         sequence.local_end > sequence.local_begin;
}

LocalTile::LocalTile(const AttendRequest& request, const Sequence& sequence, const Tile& tile,
                     std::pmr::memory_resource* arena)
    : queries_(arena), scales_(arena) {
  const LayerCard& layer = request.retrieve.layer;
  const int64_t group = layer.group();
  const auto dim = static_cast<size_t>(layer.key_dim);
  queries_.resize(static_cast<size_t>(tile.queries() * group) * dim);
  scales_.resize(static_cast<size_t>(group));
  for (int64_t g = 0; g < group; ++g) {
    const int64_t head = tile.kv_head * group + g;
    scales_[static_cast<size_t>(g)] = request.retrieve.heads[static_cast<size_t>(head)].scale;
    for (int64_t i = 0; i < tile.queries(); ++i) {
      const int64_t token = sequence.query_begin + tile.query_begin + i;
      ConvertToF32(request.query.dtype, request.query.Row(token, head),
                   queries_.data() + static_cast<size_t>(i * group + g) * dim, dim);
    }
  }
  problem_.queries = queries_.data();
  problem_.query_count = tile.queries();
  problem_.first_query = tile.query_begin;
  problem_.group = group;
  problem_.keys = request.local_keys;
  problem_.values = request.local_values;
  problem_.head = tile.kv_head;
  problem_.row_begin = sequence.local_begin;
  problem_.row_count = sequence.local_end - sequence.local_begin;
  problem_.mask = request.mask;
  problem_.mask.offset = sequence.mask_offset;
  if (problem_.mask.bits != nullptr) problem_.mask.bits += sequence.query_begin * request.mask.bits_stride;
  problem_.scales = scales_.data();
  problem_.soft_cap = layer.soft_cap;
}

void AttendLocalTile(const AttendRequest& request, const Sequence& sequence, const Tile& tile,
                     const TileStates& states) {
  const LayerCard& layer = request.retrieve.layer;
  if (!HasLocalRows(request, sequence)) {
    std::fill_n(states.outputs, tile.queries() * layer.group() * layer.value_dim, 0.0f);
    std::fill_n(states.log_sum_exps, tile.queries() * layer.group(), kEmptyLogSumExp);
    return;
  }
  Scratch scratch;
  const LocalTile local(request, sequence, tile, &scratch);
  AttendLocal(local.problem(), states.outputs, states.log_sum_exps);
}

}  // namespace mneme
