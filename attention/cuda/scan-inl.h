// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_SCAN_INL_H_
#define MNEME_ATTENTION_CUDA_SCAN_INL_H_

#include "attention/cuda/columns-inl.h"
#include "attention/cuda/workspace.h"

// Searches one range of a memory for one tile of columns. In each step each warp reads sixteen keys; rows whose logit
// reaches a column's threshold become candidates in shared memory. When the candidates of another step may not fit, a
// warp keeps the k best of them, and the least of these becomes the column's threshold.
namespace mneme::cuda {

template <int kDim, int kColumns>
struct ScanShared {
  uint16_t queries[kColumns * kQueryStride<kDim>];
  Column columns[kColumns];
  uint64_t candidates[1];  // [kColumns][capacity]

  MNEME_HOST_DEVICE static int64_t Bytes(int64_t capacity) {
    return static_cast<int64_t>(sizeof(ScanShared)) + (kColumns * capacity - 1) * 8;
  }
};

// Drops all candidates of a column but the k best, and raises its threshold, which is visible after a barrier.
// Requires: the whole warp calls.
template <class Block>
MNEME_DEVICE void Trim(Block& block, Column& column, uint64_t* candidates) {
  const uint64_t least = KeepBest(block, candidates, &column.count, column.top_k);
  if (block.lane() == 0) {
    column.threshold = least;
    column.threshold_logit = LogitOf(least);
  }
}

// Longer than 60 lines, because its phases share registers, shared memory and barriers: as functions they would pass
// each other a dozen references.
template <class Rows, int kDim, int kColumnTiles, class Block>
// NOLINTNEXTLINE(readability-function-size)
MNEME_DEVICE void ScanRange(Block& block, const AttendProblem& problem, const AttendPlan& plan,
                            const Workspace& workspace, const ColumnTile& tile, const MemoryRows& memory, int range) {
  constexpr int kColumns = kColumnTiles * kTileColumns;
  constexpr int kStep = Block::kWarps * kTileRows;
  const RowSlice rows = Slice(memory.begin, memory.end, range, plan.ranges, RangeRows(plan, memory.end - memory.begin));
  if (rows.first >= rows.last) return;

  auto& shared = *reinterpret_cast<ScanShared<kDim, kColumns>*>(block.shared());
  const void* const source = problem.memory_query == nullptr ? problem.query : problem.memory_query;
  StageQueries<Rows, kDim, kColumns>(block, problem, source, tile, shared.queries, [&](int c, float factor) {
    Column& column = shared.columns[c];
    const int32_t head = tile.Has(c) ? tile.Head(c) : 0;
    column.top_k = tile.Has(c) ? HeadTopK(problem, head) : 0u;
    column.count = 0;
    column.threshold = column.top_k == 0 ? ~uint64_t{0} : kNoRow;
    column.threshold_logit = column.top_k == 0 ? Infinity() : -Infinity();
    column.scale = factor * (problem.scale == nullptr ? 1.0f : problem.scale[head]);
    column.bias = problem.bias == nullptr ? 0.0f : problem.bias[head];
    column.decay = problem.decay == nullptr ? 0.0f : problem.decay[head];
    column.position =
        problem.decay == nullptr || !tile.Has(c) ? 0 : problem.positions[tile.first_token + tile.Query(c)];
  });
  block.Sync();

  const int64_t head_row = tile.kv_head * memory.capacity;
  const KeySource keys = {
      static_cast<const char*>(memory.keys) + head_row * kDim * ElementBytes(Rows::kType),
      kDim * ElementBytes(Rows::kType),
      memory.key_scales == nullptr ? nullptr : memory.key_scales + head_row,
  };
  const QueryParts<Rows, kDim, kColumnTiles> queries(block, shared.queries);
  const auto limit = static_cast<uint32_t>(plan.capacity - kStep);
  KeyTile<Rows, kDim> next;
  LoadKeys(block, keys, rows.first + block.warp() * kTileRows, rows.last, next);
  for (int64_t step = rows.first; step < rows.last; step += kStep) {
    const KeyTile<Rows, kDim> now = next;
    if (step + kStep < rows.last) {
      LoadKeys(block, keys, step + kStep + block.warp() * kTileRows, rows.last, next);
    }
    float scores[kColumnTiles][4];
    ScoreKeys(block, now, queries, scores);
    bool full = false;
    MNEME_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int64_t row = step + block.warp() * kTileRows + ScoreRow(block, e);
      const bool pinned = row < memory.pinned;
      const bool visible = row < rows.last && (pinned || row >= memory.kept);
      MNEME_UNROLL
      for (int t = 0; t < kColumnTiles; ++t) {
        const int c = t * kTileColumns + ScoreColumn(block, e);
        Column& column = shared.columns[c];
        float score = scores[t][e] * column.scale;
        if constexpr (Rows::kType == DType::kI8) score *= now.scale[e / 2];
        float logit = SoftCapped(score, problem.soft_cap);
        if (!pinned) logit += AgeTerm(column.bias, column.decay, column.position - row, problem.decay_beyond);
        if (visible && logit >= column.threshold_logit) {  // NaN never is
          const uint64_t key = RankKey(logit, static_cast<uint32_t>(row));
          if (key > column.threshold) {
            const uint32_t at = block.AtomicAdd(&column.count, 1u);
            shared.candidates[c * plan.capacity + static_cast<int>(at)] = key;
            full = full || at >= limit;
          }
        }
      }
    }
    // The thread that took a place beyond the limit tells the others, so that no count is read before the barrier.
    if (block.SyncOr(full)) {
      for (int c = block.warp(); c < kColumns; c += Block::kWarps) {
        if (shared.columns[c].count > limit) {
          Trim(block, shared.columns[c], shared.candidates + c * plan.capacity);
        }
      }
      block.Sync();
    }
  }

  for (int c = block.warp(); c < kColumns && tile.Has(c); c += Block::kWarps) {
    Column& column = shared.columns[c];
    uint64_t* const candidates = shared.candidates + c * plan.capacity;
    if (column.count > column.top_k) Trim(block, column, candidates);
    uint64_t* const to = workspace.candidates + (tile.Pair(c, problem.q_heads) * plan.ranges + range) * problem.top_k;
    for (int i = block.lane(); i < problem.top_k; i += kLanes) {
      to[i] = static_cast<uint32_t>(i) < column.count ? candidates[i] : kNoRow;
    }
  }
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_SCAN_INL_H_
