// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_LOCAL_INL_H_
#define MNEME_ATTENTION_CUDA_LOCAL_INL_H_

#include "attention/cuda/columns-inl.h"
#include "attention/cuda/workspace.h"

// Dense attention of one tile of columns over one split of a sequence's local rows, with a running maximum and sum
// (online softmax, Milakov and Gimelshein 2018). All warps compute the logits of kLocalChunk rows; then each warp owns
// some columns, and its lanes own dimensions of their outputs.
namespace mneme::cuda {

template <int kDim, int kColumns>
struct LocalShared {
  // The four threads of a row write two columns each. Rows four words apart keep them in different banks.
  static constexpr int kStride = kLocalChunk + 4;
  uint16_t queries[kColumns * kQueryStride<kDim>];
  float scales[kColumns];
  float logits[kColumns * kStride];
};

// Whether query `query` of `queries` sees local row `row` of `rows`. Requires: the mask is not kBits.
MNEME_HOST_DEVICE bool LocalVisible(LocalMaskKind mask, int64_t window, int64_t query, int64_t queries, int64_t row,
                                    int64_t rows) {
  const int64_t newest = query + rows - queries;
  if (mask == LocalMaskKind::kNone) return true;
  if (row > newest) return false;
  return mask == LocalMaskKind::kCausal || row > newest - window;
}

// Longer than 60 lines, because its phases share registers, shared memory and barriers: as functions they would pass
// each other a dozen references.
template <class Rows, int kDim, int kColumnTiles, class Block>
// NOLINTNEXTLINE(readability-function-size)
MNEME_DEVICE void AttendSplit(Block& block, const AttendProblem& problem, const AttendPlan& plan,
                              const Workspace& workspace, const ColumnTile& tile, int64_t first_row, int64_t row_count,
                              int split) {
  constexpr int kColumns = kColumnTiles * kTileColumns;
  static_assert(kColumns % Block::kWarps == 0);
  constexpr int kMine = kColumns / Block::kWarps;  // columns of a warp: warp, warp + kWarps, …
  constexpr int kMaxParts = 4;                     // of 64 dims; a lane has two dims of each
  const RowSlice rows = Slice(0, row_count, split, plan.splits, plan.split_rows);
  if (rows.first >= rows.last) return;

  auto& shared = *reinterpret_cast<LocalShared<kDim, kColumns>*>(block.shared());
  StageQueries<Rows, kDim, kColumns>(block, problem, problem.query, tile, shared.queries, [&](int c, float factor) {
    shared.scales[c] = factor * (problem.scale == nullptr || !tile.Has(c) ? 1.0f : problem.scale[tile.Head(c)]);
  });
  block.Sync();

  const KeySource keys = {
      static_cast<const char*>(problem.local_keys) +
          2 * (first_row * problem.local_key_row_stride + tile.kv_head * problem.local_key_head_stride),
      2 * problem.local_key_row_stride, nullptr};
  const char* const values =
      static_cast<const char*>(problem.local_values) +
      2 * (first_row * problem.local_value_row_stride + tile.kv_head * problem.local_value_head_stride);
  const QueryParts<Rows, kDim, kColumnTiles> queries(block, shared.queries);
  const int parts = problem.value_dim / 64;
  float greatest[kMine], sum[kMine], output[kMine][kMaxParts][2];
  MNEME_UNROLL
  for (int m = 0; m < kMine; ++m) {
    greatest[m] = -Infinity();
    sum[m] = 0.0f;
    MNEME_UNROLL
    for (int p = 0; p < kMaxParts; ++p) output[m][p][0] = output[m][p][1] = 0.0f;
  }

  for (int64_t chunk = rows.first; chunk < rows.last; chunk += kLocalChunk) {
    const int present = static_cast<int>(Least<int64_t>(kLocalChunk, rows.last - chunk));
    for (int r = block.warp() * kTileRows; r < kLocalChunk; r += Block::kWarps * kTileRows) {
      KeyTile<Rows, kDim> tile_keys;
      LoadKeys(block, keys, chunk + r, rows.last, tile_keys);
      float scores[kColumnTiles][4];
      ScoreKeys(block, tile_keys, queries, scores);
      MNEME_UNROLL
      for (int t = 0; t < kColumnTiles; ++t) {
        MNEME_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int c = t * kTileColumns + ScoreColumn(block, e);
          const int at = r + ScoreRow(block, e);
          const bool seen = at < present && LocalVisible(problem.local_mask, problem.local_window, tile.Query(c),
                                                         tile.queries, chunk + at, row_count);
          shared.logits[c * shared.kStride + at] =
              seen ? SoftCapped(scores[t][e] * shared.scales[c], problem.soft_cap) : -Infinity();
        }
      }
    }
    block.Sync();

    MNEME_UNROLL
    for (int m = 0; m < kMine; ++m) {
      float* const logits = shared.logits + (block.warp() + m * Block::kWarps) * shared.kStride;
      float most = logits[block.lane()];
      for (int at = kLanes + block.lane(); at < kLocalChunk; at += kLanes) {
        most = most != most || logits[at] <= most ? most : logits[at];
      }
      most = WarpGreatestOf(block, most);
      most = greatest[m] != greatest[m] || most <= greatest[m] ? greatest[m] : most;
      // If no row is seen yet, weights are 0; exp(-infinity + infinity) would be NaN.
      const bool none = most == -Infinity();
      const float kept = none ? 1.0f : expf(greatest[m] - most);
      float mass = 0.0f;
      for (int at = block.lane(); at < kLocalChunk; at += kLanes) {
        const float weight = none ? 0.0f : expf(logits[at] - most);
        logits[at] = weight;
        mass += weight;
      }
      sum[m] = sum[m] * kept + WarpSumOf(block, mass);
      greatest[m] = most;
      MNEME_UNROLL
      for (int p = 0; p < kMaxParts; ++p) {
        output[m][p][0] *= kept;
        output[m][p][1] *= kept;
      }
    }
    block.WarpSync();

    for (int at = 0; at < present; ++at) {
      const auto* const row =
          reinterpret_cast<const uint32_t*>(values + 2 * (chunk + at) * problem.local_value_row_stride);
      float value[kMaxParts][2];
      MNEME_UNROLL
      for (int p = 0; p < kMaxParts; ++p) {
        const uint32_t pair = p < parts ? row[p * kLanes + block.lane()] : 0u;
        value[p][0] = Widen(Rows::kType, static_cast<uint16_t>(pair));
        value[p][1] = Widen(Rows::kType, static_cast<uint16_t>(pair >> 16));
      }
      MNEME_UNROLL
      for (int m = 0; m < kMine; ++m) {
        const float weight = shared.logits[(block.warp() + m * Block::kWarps) * shared.kStride + at];
        if (weight == 0.0f) continue;  // a hidden row may hold anything, even NaN
        MNEME_UNROLL
        for (int p = 0; p < kMaxParts; ++p) {
          output[m][p][0] += weight * value[p][0];
          output[m][p][1] += weight * value[p][1];
        }
      }
    }
    block.Sync();
  }

  MNEME_UNROLL
  for (int m = 0; m < kMine; ++m) {
    const int c = block.warp() + m * Block::kWarps;
    if (!tile.Has(c)) continue;
    const int64_t at = tile.Pair(c, problem.q_heads) * plan.splits + split;
    const bool none = greatest[m] == -Infinity();
    if (block.lane() == 0) workspace.local_sums[at] = none ? -Infinity() : greatest[m] + logf(sum[m]);
    float* const to = workspace.local_outputs + at * problem.value_dim;
    MNEME_UNROLL
    for (int p = 0; p < kMaxParts; ++p) {
      if (p < parts) {
        to[p * 2 * kLanes + 2 * block.lane()] = none ? 0.0f : output[m][p][0] / sum[m];
        to[p * 2 * kLanes + 2 * block.lane() + 1] = none ? 0.0f : output[m][p][1] / sum[m];
      }
    }
  }
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_LOCAL_INL_H_
