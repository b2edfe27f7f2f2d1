// SPDX-License-Identifier: Apache-2.0
// The gradients of attention over the local rows (FlashAttention-2, Dao 2023). For each query row with log-sum-exp L,
// output gradient u and offset t, tile by tile:
//   s_j = scale q·k_j     p_j = exp(cap(s_j) - L)     e_j = p_j (u·v_j - t) cap'(s_j)
//   dv_j += p_j u         dq += scale e_j k_j         dk_j += scale e_j q         dscale += e_j q·k_j
// Query rows are taken in blocks of fixed size from the first one, so the bits depend on the problem alone.

#ifndef MNEME_ATTENTION_LOCAL_BACKWARD_INL_H_
#define MNEME_ATTENTION_LOCAL_BACKWARD_INL_H_

#include "attention/local-inl.h"

namespace mneme {
namespace {

// A block of queries, twice in the form that the forward functions take: as they meet the keys, with weights that
// become the gradients of scores (outputs: the query gradients), and as their output gradients meet the values.
struct BackwardBlock {
  const LocalBackwardKernelArgs* args;
  Block keys;
  Block values;
  float* scores;  // [rows] sums of e_j q·k_j
};

// One query row and one tile. Turns scores q·k into gradients of q·k (scale e_j), and products u·v into weights p_j;
// both are 0 where the row is hidden, whatever stood there. Returns: the sum of e_j q·k_j.
MNEME_NOINLINE float ScoresToGradients(float* scores, float* products, uint64_t seen, float scale, float soft_cap,
                                       float log_sum_exp, float offset) {
  const float inverse_cap = soft_cap == 0 ? 0 : 1.0f / soft_cap;
  Floats total = {};
  for (int64_t v = 0; v < kLocalTile / kLanes; ++v) {
    const Floats dots = Load(scores + v * kLanes);
    Floats logits = dots * scale;
    Floats slopes = Broadcast(1.0f);
    if (soft_cap != 0) {
      const Floats bent = Tanh(logits * inverse_cap);
      logits = bent * soft_cap;
      slopes = 1.0f - bent * bent;
    }
    // By rounding a logit may exceed the log-sum-exp a little.
    const Floats weights = Exp(logits - log_sum_exp);
    const Floats gradients = weights * (Load(products + v * kLanes) - offset) * slopes;
    Ints lane_bits;  // lane i: bit i
    for (int i = 0; i < kLanes; ++i) lane_bits[i] = 1 << i;
    const auto lanes = static_cast<int32_t>(seen >> (v * kLanes) & LowBits(kLanes));
    const Ints visible = (lane_bits & lanes) != 0;
    Store(Select(visible, gradients * scale, Floats{}), scores + v * kLanes);
    Store(Select(visible, weights, Floats{}), products + v * kLanes);
    total += Select(visible, gradients * dots, Floats{});
  }
  return SumLanes(total);
}

// sums[i] += sum over query rows r of weights[r][i] * rows[r], for kRows local rows i and kVectors vectors: a product
// of the forward pass with the two roles swapped.
template <int kRows, int kVectors>
MNEME_NOINLINE void AddSwapped(const float* weights, const float* rows, int64_t count, int64_t stride, float* sums) {
  Floats acc[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) acc[i][v] = Load(sums + i * stride + v * kLanes);
  }
  for (int64_t r = 0; r < count; ++r) {
    Floats weight[kRows];
    for (int i = 0; i < kRows; ++i) weight[i] = Broadcast(weights[r * kLocalTile + i]);
    for (int v = 0; v < kVectors; ++v) {
      const Floats part = Load(rows + r * stride + v * kLanes);
      for (int i = 0; i < kRows; ++i) acc[i][v] += weight[i] * part;
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) Store(acc[i][v], sums + i * stride + v * kLanes);
  }
}

// All vectors of kRows local rows.
template <int kRows>
inline void AddSwappedRows(const float* weights, const float* rows, int64_t count, int64_t vectors, int64_t stride,
                           float* sums) {
  constexpr int kWide = 4;
  int64_t v = 0;
  for (; v + kWide <= vectors; v += kWide) {
    AddSwapped<kRows, kWide>(weights, rows + v * kLanes, count, stride, sums + v * kLanes);
  }
  for (; v < vectors; ++v) AddSwapped<kRows, 1>(weights, rows + v * kLanes, count, stride, sums + v * kLanes);
}

// Adds what query rows [row_begin, row_end) of one side give to the gradients of a tile's local rows. all_sums: of all
// local rows; null: not wanted.
inline void AddToLocalRows(const Block& side, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t count,
                           float* all_sums) {
  if (all_sums == nullptr) return;
  const int64_t stride = side.key_stride;
  const float* const rows = side.queries + row_begin * stride;
  int64_t taken;
  for (int64_t j = 0; j < count; j += taken) {
    taken = RowsAtOnce(count - j);
    const auto add = taken == 1   ? AddSwappedRows<1>
                     : taken == 2 ? AddSwappedRows<2>
                     : taken == 3 ? AddSwappedRows<3>
                                  : AddSwappedRows<kMaxRows>;
    add(side.weights + row_begin * kLocalTile + j, rows, row_end - row_begin, side.key_vectors, stride,
        all_sums + (tile_begin + j) * stride);
  }
}

inline void BackwardTile(BackwardBlock& block, int64_t tile_begin, int64_t count) {
  const LocalKernelArgs& args = block.args->local;
  int64_t row_begin = block.keys.rows, row_end = 0;  // query rows that see any of the tile lie within
  for (int64_t i = 0; i < block.keys.query_count; ++i) {
    block.keys.seen[i] = SeenInTile(args, args.first_query + block.keys.first_query + i, tile_begin, count);
    if (block.keys.seen[i] == 0) continue;
    row_begin = Min(row_begin, i * args.group);
    row_end = (i + 1) * args.group;
  }
  if (row_begin >= row_end) return;
  const TileRows keys =
      PrepareTile(args.keys + tile_begin * args.key_bytes, args.key_bytes, args.key_dtype, count, args.key_dim,
                  block.keys.key_vectors, true, block.keys.wide_keys, block.keys.key_stride);
  const TileRows values =
      PrepareTile(args.values + tile_begin * args.value_bytes, args.value_bytes, args.value_dtype, count,
                  args.value_dim, block.values.key_vectors, true, block.values.wide_keys, block.values.key_stride);
  ScoreBlock<F32Element>(block.keys, keys, count, kNoNextRows);
  ScoreBlock<F32Element>(block.values, values, count, kNoNextRows);
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* const scores = block.keys.weights + row * kLocalTile;
    float* const products = block.values.weights + row * kLocalTile;
    const int64_t at = block.keys.first_query * args.group + row;
    uint64_t seen = block.keys.seen[row / args.group];
    // No visible row has a logit above -infinity, so none has a weight.
    if (block.args->log_sum_exp[at] == -kInfinity) seen = 0;
    if (seen == 0) {
      for (int64_t j = 0; j < kLocalTile; ++j) scores[j] = products[j] = 0;
      continue;
    }
    block.scores[row] += ScoresToGradients(scores, products, seen, args.scales[row % args.group], args.soft_cap,
                                           block.args->log_sum_exp[at], block.args->offsets[at]);
  }
  if (block.args->query_gradients != nullptr) AddValuesBlock<F32Element>(block.keys, keys, kNoNextRows);
  AddToLocalRows(block.keys, row_begin, row_end, tile_begin, count, block.args->key_gradients);
  AddToLocalRows(block.values, row_begin, row_end, tile_begin, count, block.args->value_gradients);
}

// Copies query rows [first, first + rows) to rows with zeros beyond `dim`.
inline void PadRows(const float* from, int64_t rows, int64_t dim, float* to, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < dim; ++i) to[row * stride + i] = from[row * dim + i];
    for (int64_t i = dim; i < stride; ++i) to[row * stride + i] = 0;
  }
}

inline void BackwardQueries(BackwardBlock& block) {
  const LocalKernelArgs& args = block.args->local;
  const int64_t rows = block.keys.query_count * args.group;
  const int64_t first_row = block.keys.first_query * args.group;
  block.keys.rows = block.values.rows = rows;
  block.values.query_count = block.keys.query_count;
  PadRows(args.queries + first_row * args.key_dim, rows, args.key_dim, block.keys.queries, block.keys.key_stride);
  PadRows(block.args->output_gradients + first_row * args.value_dim, rows, args.value_dim, block.values.queries,
          block.values.key_stride);
  for (int64_t i = 0; i < rows * block.keys.value_stride; ++i) block.keys.outputs[i] = 0;
  for (int64_t row = 0; row < rows; ++row) {
    block.keys.corrections[row] = 1.0f;
    block.scores[row] = 0;
  }
  int64_t begin, end, unused;
  const int64_t first = args.first_query + block.keys.first_query;
  VisibleRange(args, first, &begin, &unused);
  VisibleRange(args, first + block.keys.query_count - 1, &unused, &end);
  for (int64_t tile = begin / kLocalTile * kLocalTile; tile < end; tile += kLocalTile) {
    BackwardTile(block, tile, Min(kLocalTile, args.row_count - tile));
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (block.args->query_gradients != nullptr) {
      float* const to = block.args->query_gradients + (first_row + row) * args.key_dim;
      for (int64_t i = 0; i < args.key_dim; ++i) to[i] = block.keys.outputs[row * block.keys.value_stride + i];
    }
    if (block.args->scale_gradients != nullptr) {
      block.args->scale_gradients[row % args.group] += static_cast<double>(block.scores[row]);
    }
  }
}

// AttendKernels::attend_local_backward.
void AttendLocalRowsBackward(const LocalBackwardKernelArgs& backward) {
  const LocalKernelArgs& args = backward.local;
  BackwardBlock block;
  block.args = &backward;
  const int64_t rows = args.block_queries * args.group;
  float* scratch = args.scratch;
  const auto take = [&scratch](int64_t floats) {
    float* taken = scratch;
    scratch += RoundUp(floats, 16);
    return taken;
  };
  const auto side = [&](Block& of, int64_t dim) {
    of = Block{};
    of.args = &args;
    // A row of this side is read as a key, and summed as a value.
    of.key_vectors = of.value_vectors = RoundUp(dim, kLanes) / kLanes;
    of.key_stride = of.value_stride = RoundUp(dim, 16);
    of.queries = take(rows * of.key_stride);
    of.weights = take(rows * kLocalTile);
    of.wide_keys = take(kLocalTile * of.key_stride);
  };
  side(block.keys, args.key_dim);
  side(block.values, args.value_dim);
  block.keys.outputs = take(rows * block.keys.value_stride);
  block.keys.partials = take(rows * block.keys.value_stride);
  block.keys.corrections = take(rows);
  block.keys.seen = reinterpret_cast<uint64_t*>(take(args.block_queries * 2));
  block.values.seen = block.keys.seen;
  block.scores = take(rows);
  for (int64_t first = 0; first < args.query_count; first += args.block_queries) {
    block.keys.first_query = block.values.first_query = first;
    block.keys.query_count = Min(args.block_queries, args.query_count - first);
    BackwardQueries(block);
  }
}

}  // namespace
}  // namespace mneme

#endif  // MNEME_ATTENTION_LOCAL_BACKWARD_INL_H_
