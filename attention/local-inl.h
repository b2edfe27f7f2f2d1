// SPDX-License-Identifier: Apache-2.0
// Attention over the local rows, one tile of kLocalTile rows after another, with a running maximum and sum (online
// softmax: Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022). For each query row, with m, l and o updated
// tile by tile:
//   m' = max(m, max_j logit_j)     c = exp(m - m')     p_j = exp(logit_j - m')
//   l' = c l + sum_j p_j           o' = c o + sum_j p_j v_j
//   output = o / l                 log_sum_exp = m + ln l
// A query row is one query of one head. Its result does not depend on how many query rows are computed beside it, nor
// on whether the tile was converted to f32 beforehand.

#ifndef MNEME_ATTENTION_LOCAL_INL_H_
#define MNEME_ATTENTION_LOCAL_INL_H_

#include "attention/attend_kernel.h"
#include "attention/vector-inl.h"
#include "base/inline.h"

namespace mneme {
namespace {

// Query rows computed together: 3 x 4 accumulators leave room for operands in 16 registers, 4 x 4 in AVX-512's 32.
constexpr int kMaxRows = kLanes >= 16 ? 4 : 3;
constexpr int kKeysAtOnce = 4;
// With more query rows than this, a tile is converted to f32 once for all of them.
constexpr int64_t kMaxRowsUnwidened = 8;

MNEME_INLINE int64_t Min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
MNEME_INLINE int64_t Max(int64_t a, int64_t b) {
  return a > b ? a : b;
}
MNEME_INLINE int64_t RoundUp(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// How many of the query rows left to take next. Four rows, where kMaxRows is three, are better taken as two and two.
MNEME_INLINE int64_t RowsAtOnce(int64_t left) {
  return left == kMaxRows + 1 ? (left + 1) / 2 : Min(kMaxRows, left);
}

// The rows of one tile: in the caller's tensor, or converted to f32 in scratch memory.
struct TileRows {
  const char* base;
  int64_t stride;  // bytes
  DType dtype;
};

// Rows to prefetch while the current ones are computed. Rows of one head lie so far apart that the processor does not
// prefetch them.
struct NextRows {
  const char* base;
  int64_t stride;  // bytes
  int64_t bytes;   // of a row
  int64_t count;   // 0: nothing to fetch
};

constexpr NextRows kNoNextRows = {nullptr, 0, 0, 0};

MNEME_INLINE void Prefetch(const NextRows& ahead, int64_t row) {
  if (row >= ahead.count) return;
  const char* begin = ahead.base + row * ahead.stride;
  const int64_t into_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin) % 64);
  for (int64_t byte = -into_line; byte < ahead.bytes; byte += 64) __builtin_prefetch(begin + byte);
}

MNEME_INLINE int64_t ElementBytes(DType dtype) {
  return dtype == DType::kF32 ? 4 : 2;
}

// One block of queries and its arrays in scratch memory. Query rows are numbered query * group + g.
struct Block {
  const LocalKernelArgs* args;
  int64_t first_query;  // of args->queries
  int64_t query_count;
  int64_t rows;
  int64_t key_vectors, value_vectors;
  int64_t key_stride, value_stride;  // floats from each row to the next in the scratch arrays
  bool widen_keys, widen_values;
  float* queries;      // [rows][key_stride], zeros beyond key_dim
  float* outputs;      // [rows][value_stride]
  float* partials;     // [rows][value_stride]: one tile's share, if its visible rows form several runs
  float* weights;      // [rows][kLocalTile]: scores, then weights
  float* maxima;       // [rows]
  float* sums;         // [rows]
  float* corrections;  // [rows]
  float* wide_keys;    // [kLocalTile][key_stride]
  float* wide_values;  // [kLocalTile][value_stride]
  uint64_t* seen;      // [query_count]: bit j: the query sees row j of the current tile
};

MNEME_INLINE uint64_t LowBits(int64_t n) {
  return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
}

// The visible rows [begin, end) of a contiguous mask; all rows for a mask of bits.
MNEME_INLINE void VisibleRange(const LocalKernelArgs& args, int64_t query, int64_t* begin, int64_t* end) {
  *begin = 0;
  *end = args.row_count;
  if (args.mask == LocalMaskKind::kNone || args.mask == LocalMaskKind::kBits) return;
  const int64_t newest = query + args.mask_offset;
  *end = Max(0, Min(args.row_count, newest + 1));
  if (args.mask == LocalMaskKind::kSlidingWindow) {
    *begin = Min(*end, Max(0, newest - args.mask_window + 1));
  }
}

// Bit j: the query sees row tile_begin + j, of `count` rows.
inline uint64_t SeenInTile(const LocalKernelArgs& args, int64_t query, int64_t tile_begin, int64_t count) {
  if (args.mask == LocalMaskKind::kBits) {
    // A tile begins at a whole byte. Bits beyond the last row are ignored; bytes beyond it are not read.
    const uint8_t* bits = args.mask_bits + query * args.mask_bits_bytes + tile_begin / 8;
    uint64_t seen = 0;
    for (int64_t i = 0; i * 8 < count; ++i) seen |= static_cast<uint64_t>(bits[i]) << (8 * i);
    return seen & LowBits(count);
  }
  int64_t begin, end;
  VisibleRange(args, query, &begin, &end);
  begin = Max(0, begin - tile_begin);
  end = Min(count, end - tile_begin);
  return begin < end ? LowBits(end) & ~LowBits(begin) : 0;
}

template <typename Element>
inline void WidenRows(const char* source, int64_t stride, int64_t count, int64_t dim, int64_t vectors,
                      float* destination, int64_t destination_stride) {
  const int64_t whole = dim / kLanes;
  for (int64_t row = 0; row < count; ++row) {
    const char* from = source + row * stride;
    float* to = destination + row * destination_stride;
    for (int64_t v = 0; v < whole; ++v) Store(Element::Widen(from + v * kLanes * Element::kBytes), to + v * kLanes);
    if (whole < vectors) {
      Store(WidenTail<Element>(from + whole * kLanes * Element::kBytes, dim - whole * kLanes), to + whole * kLanes);
    }
  }
}

// Returns: the tile's rows, converted to f32 in `wide` if `widen` is set.
inline TileRows PrepareTile(const char* source, int64_t stride, DType dtype, int64_t count, int64_t dim,
                            int64_t vectors, bool widen, float* wide, int64_t wide_stride) {
  if (!widen) return {source, stride, dtype};
  switch (dtype) {
    case DType::kF32: WidenRows<F32Element>(source, stride, count, dim, vectors, wide, wide_stride); break;
    case DType::kF16: WidenRows<F16Element>(source, stride, count, dim, vectors, wide, wide_stride); break;
    case DType::kBF16: WidenRows<BF16Element>(source, stride, count, dim, vectors, wide, wide_stride); break;
    case DType::kI8: break;
  }
  return {reinterpret_cast<const char*>(wide), wide_stride * 4, DType::kF32};
}

// scores[r][j] = queries[r] · keys[j] for kRows rows and the keys [begin, end) rounded outwards to fours. Keys past
// `last` are read as `last`, and their scores are not used.
template <typename Element, int kRows>
MNEME_NOINLINE void ScoreRows(const float* queries, int64_t query_stride, int64_t vectors, const TileRows& keys,
                              int64_t begin, int64_t end, int64_t last, const NextRows& ahead, float* scores) {
  for (int64_t j = begin / kKeysAtOnce * kKeysAtOnce; j < end; j += kKeysAtOnce) {
    for (int i = 0; i < kKeysAtOnce; ++i) Prefetch(ahead, j + i);
    const char* key[kKeysAtOnce];
    for (int i = 0; i < kKeysAtOnce; ++i) key[i] = keys.base + Min(j + i, last) * keys.stride;
    Floats sums[kRows][kKeysAtOnce] = {};
    for (int64_t v = 0; v < vectors; ++v) {
      Floats query[kRows];
      for (int r = 0; r < kRows; ++r) query[r] = Load(queries + r * query_stride + v * kLanes);
      for (int i = 0; i < kKeysAtOnce; ++i) {
        const Floats part = Element::Widen(key[i] + v * kLanes * Element::kBytes);
        for (int r = 0; r < kRows; ++r) sums[r][i] += query[r] * part;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const FourFloats four = SumsOf(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
      __builtin_memcpy(scores + r * kLocalTile + j, &four, sizeof(four));
    }
  }
}

template <typename Element>
inline void ScoreBlock(const Block& block, const TileRows& keys, int64_t count, const NextRows& values) {
  const int64_t group = block.args->group;
  const NextRows* ahead = &values;
  int64_t rows;
  for (int64_t row = 0; row < block.rows; row += rows) {
    rows = RowsAtOnce(block.rows - row);
    uint64_t seen = 0;
    for (int64_t r = row; r < row + rows; ++r) seen |= block.seen[r / group];
    if (seen == 0) continue;
    const auto score = rows == 1   ? ScoreRows<Element, 1>
                       : rows == 2 ? ScoreRows<Element, 2>
                       : rows == 3 ? ScoreRows<Element, 3>
                                   : ScoreRows<Element, kMaxRows>;
    score(block.queries + row * block.key_stride, block.key_stride, block.key_vectors, keys, __builtin_ctzll(seen),
          64 - __builtin_clzll(seen), count - 1, *ahead, block.weights + row * kLocalTile);
    ahead = &kNoNextRows;
  }
}

// The next two functions are not inlined, so that the compiler fuses the same products for every caller. They are two
// functions so that all query rows finish the first before any begins the second, which waits long for the maximum.

// Turns one query row's scores into logits, and updates its maximum. correction = exp(old maximum - new maximum).
MNEME_NOINLINE void ScoresToLogits(float* scores, uint64_t seen, float scale, float soft_cap, float* maximum,
                                   float* correction) {
  constexpr int64_t kVectors = kLocalTile / kLanes;
  const float inverse_cap = soft_cap == 0 ? 0 : 1.0f / soft_cap;
  Floats greatest = Broadcast(-kInfinity);
  for (int64_t v = 0; v < kVectors; ++v) {
    Floats logits = Load(scores + v * kLanes) * scale;
    if (soft_cap != 0) logits = Tanh(logits * inverse_cap) * soft_cap;
    if (seen != ~uint64_t{0}) {
      Ints lane_bits;  // lane i: bit i
      for (int i = 0; i < kLanes; ++i) lane_bits[i] = 1 << i;
      const auto lanes = static_cast<int32_t>(seen >> (v * kLanes) & LowBits(kLanes));
      logits = Select((lane_bits & lanes) != 0, logits, Broadcast(-kInfinity));
    }
    Store(logits, scores + v * kLanes);
    greatest = Max(logits, greatest);  // ignores NaN, which comes out again in the weights
  }
  const float old = *maximum;
  const float tile_greatest = MaxLanes(greatest);
  const float updated = tile_greatest > old ? tile_greatest : old;
  *correction = updated == old ? 1.0f : Exp(Broadcast(old - updated))[0];
  *maximum = updated;
}

// Turns one query row's logits into weights exp(logit - maximum), and updates its sum.
MNEME_NOINLINE void LogitsToWeights(float* logits, float maximum, float correction, float* sum) {
  constexpr int64_t kVectors = kLocalTile / kLanes;
  // If all logits are -infinity, so must be their difference from the maximum; -infinity - -infinity would be NaN.
  const float base = maximum == -kInfinity ? 0.0f : maximum;
  Floats total = {};
  for (int64_t v = 0; v < kVectors; ++v) {
    const Floats weights = Exp(Load(logits + v * kLanes) - base);
    Store(weights, logits + v * kLanes);
    total += weights;
  }
  *sum = *sum * correction + SumLanes(total);
}

// For kRows query rows and kVectors vectors of the values:
//   acc[r] = (first ? 0 : partials[r]) + sum over j in [begin, end) of weights[r][j] * values[j]
//   last: outputs[r] = outputs[r] * corrections[r] + acc[r]; else: partials[r] = acc[r]
// first, last: whether [begin, end) is the tile's first and its last run of visible rows.
template <typename Element, int kRows, int kVectors>
MNEME_INLINE void AddValuesChunk(const float* weights, const TileRows& values, int64_t value_offset, int64_t begin,
                                 int64_t end, bool first, bool last, const NextRows& ahead, const float* corrections,
                                 float* outputs, float* partials, int64_t stride) {
  Floats acc[kRows][kVectors] = {};
  if (!first) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) acc[r][v] = Load(partials + r * stride + v * kLanes);
    }
  }
  const char* row = values.base + begin * values.stride + value_offset * Element::kBytes;
  for (int64_t j = begin; j < end; ++j, row += values.stride) {
    Prefetch(ahead, j);
    Floats weight[kRows];
    for (int r = 0; r < kRows; ++r) weight[r] = Broadcast(weights[r * kLocalTile + j]);
    for (int v = 0; v < kVectors; ++v) {
      const Floats part = Element::Widen(row + v * kLanes * Element::kBytes);
      for (int r = 0; r < kRows; ++r) acc[r][v] += weight[r] * part;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      if (last) {
        float* output = outputs + r * stride + v * kLanes;
        Store(Load(output) * corrections[r] + acc[r][v], output);
      } else {
        Store(acc[r][v], partials + r * stride + v * kLanes);
      }
    }
  }
}

template <typename Element, int kRows>
MNEME_NOINLINE void AddValues(const Block& block, int64_t row, const TileRows& values, int64_t begin, int64_t end,
                              bool first, bool last, const NextRows& keys) {
  constexpr int kWide = kRows == 1 ? 8 : 4;
  const float* weights = block.weights + row * kLocalTile;
  const float* corrections = block.corrections + row;
  float* outputs = block.outputs + row * block.value_stride;
  float* partials = block.partials + row * block.value_stride;
  const NextRows* ahead = &keys;
  int64_t v = 0;
  for (; v + kWide <= block.value_vectors; v += kWide) {
    const int64_t at = v * kLanes;
    AddValuesChunk<Element, kRows, kWide>(weights, values, at, begin, end, first, last, *ahead, corrections,
                                          outputs + at, partials + at, block.value_stride);
    ahead = &kNoNextRows;
  }
  for (; v < block.value_vectors; ++v) {
    const int64_t at = v * kLanes;
    AddValuesChunk<Element, kRows, 1>(weights, values, at, begin, end, first, last, *ahead, corrections, outputs + at,
                                      partials + at, block.value_stride);
    ahead = &kNoNextRows;
  }
}

// Adds the tile's visible rows to every query row. Hidden rows are not read, since they may hold anything, even NaN.
template <typename Element>
inline void AddValuesBlock(const Block& block, const TileRows& values, const NextRows& keys) {
  const int64_t group = block.args->group;
  const NextRows* ahead = &keys;
  int64_t next;
  for (int64_t query = 0; query < block.query_count; query = next) {
    const uint64_t seen = block.seen[query];
    for (next = query + 1; next < block.query_count && block.seen[next] == seen;) ++next;
    for (uint64_t rest = seen; rest != 0;) {
      const int64_t begin = __builtin_ctzll(rest);
      const uint64_t gaps = ~rest & ~LowBits(begin);
      const int64_t end = gaps == 0 ? 64 : __builtin_ctzll(gaps);
      const bool first = rest == seen;
      rest &= ~LowBits(end);
      const bool last = rest == 0;
      int64_t rows;
      for (int64_t row = query * group; row < next * group; row += rows) {
        rows = RowsAtOnce(next * group - row);
        const auto add = rows == 1   ? AddValues<Element, 1>
                         : rows == 2 ? AddValues<Element, 2>
                         : rows == 3 ? AddValues<Element, 3>
                                     : AddValues<Element, kMaxRows>;
        add(block, row, values, begin, end, first, last, *ahead);
        ahead = &kNoNextRows;
      }
    }
  }
}

inline void AttendTile(const Block& block, int64_t tile_begin, int64_t count) {
  const LocalKernelArgs& args = *block.args;
  uint64_t any = 0;
  for (int64_t i = 0; i < block.query_count; ++i) {
    block.seen[i] = SeenInTile(args, args.first_query + block.first_query + i, tile_begin, count);
    any |= block.seen[i];
  }
  if (any == 0) return;

  const char* tile_values = args.values + tile_begin * args.value_bytes;
  const NextRows values_ahead = {tile_values, args.value_bytes, args.value_dim * ElementBytes(args.value_dtype), count};
  const int64_t next = tile_begin + count;
  const NextRows keys_ahead = {args.keys + next * args.key_bytes, args.key_bytes,
                               args.key_dim * ElementBytes(args.key_dtype), args.row_count - next};

  const TileRows keys =
      PrepareTile(args.keys + tile_begin * args.key_bytes, args.key_bytes, args.key_dtype, count, args.key_dim,
                  block.key_vectors, block.widen_keys, block.wide_keys, block.key_stride);
  switch (keys.dtype) {
    case DType::kF32: ScoreBlock<F32Element>(block, keys, count, values_ahead); break;
    case DType::kF16: ScoreBlock<F16Element>(block, keys, count, values_ahead); break;
    case DType::kBF16: ScoreBlock<BF16Element>(block, keys, count, values_ahead); break;
    case DType::kI8: break;
  }
  for (int64_t row = 0; row < block.rows; ++row) {
    const uint64_t seen = block.seen[row / args.group];
    if (seen == 0) continue;
    ScoresToLogits(block.weights + row * kLocalTile, seen, args.scales[row % args.group], args.soft_cap,
                   block.maxima + row, block.corrections + row);
  }
  for (int64_t row = 0; row < block.rows; ++row) {
    if (block.seen[row / args.group] == 0) continue;
    LogitsToWeights(block.weights + row * kLocalTile, block.maxima[row], block.corrections[row], block.sums + row);
  }
  const TileRows values = PrepareTile(tile_values, args.value_bytes, args.value_dtype, count, args.value_dim,
                                      block.value_vectors, block.widen_values, block.wide_values, block.value_stride);
  switch (values.dtype) {
    case DType::kF32: AddValuesBlock<F32Element>(block, values, keys_ahead); break;
    case DType::kF16: AddValuesBlock<F16Element>(block, values, keys_ahead); break;
    case DType::kBF16: AddValuesBlock<BF16Element>(block, values, keys_ahead); break;
    case DType::kI8: break;
  }
}

inline void FinishRow(const Block& block, int64_t row, float* output, float* log_sum_exp) {
  const int64_t value_dim = block.args->value_dim;
  const float* sum_of_values = block.outputs + row * block.value_stride;
  const float sum = block.sums[row];
  if (sum == 0.0f) {
    for (int64_t i = 0; i < value_dim; ++i) output[i] = 0;
    *log_sum_exp = -kInfinity;
    return;
  }
  for (int64_t i = 0; i < value_dim; ++i) output[i] = sum_of_values[i] / sum;
  *log_sum_exp = static_cast<float>(static_cast<double>(block.maxima[row]) + __builtin_log(static_cast<double>(sum)));
}

inline void AttendBlock(Block& block) {
  const LocalKernelArgs& args = *block.args;
  block.rows = block.query_count * args.group;
  for (int64_t row = 0; row < block.rows; ++row) {
    const float* from = args.queries + (block.first_query * args.group + row) * args.key_dim;
    float* to = block.queries + row * block.key_stride;
    for (int64_t i = 0; i < args.key_dim; ++i) to[i] = from[i];
    for (int64_t i = args.key_dim; i < block.key_stride; ++i) to[i] = 0;
    float* output = block.outputs + row * block.value_stride;
    for (int64_t i = 0; i < block.value_stride; ++i) output[i] = 0;
    block.maxima[row] = -kInfinity;
    block.sums[row] = 0;
  }
  // From one query to the next, a contiguous mask only moves forward.
  int64_t begin, end, unused;
  const int64_t first = args.first_query + block.first_query;
  VisibleRange(args, first, &begin, &unused);
  VisibleRange(args, first + block.query_count - 1, &unused, &end);
  for (int64_t tile = begin / kLocalTile * kLocalTile; tile < end; tile += kLocalTile) {
    AttendTile(block, tile, Min(kLocalTile, args.row_count - tile));
  }
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t at = block.first_query * args.group + row;
    FinishRow(block, row, args.output + at * args.value_dim, args.log_sum_exp + at);
  }
}

// AttendKernels::attend_local.
void AttendLocalRows(const LocalKernelArgs& args) {
  Block block;
  block.args = &args;
  const int64_t rows = args.block_queries * args.group;
  block.key_vectors = RoundUp(args.key_dim, kLanes) / kLanes;
  block.value_vectors = RoundUp(args.value_dim, kLanes) / kLanes;
  block.key_stride = RoundUp(args.key_dim, 16);
  block.value_stride = RoundUp(args.value_dim, 16);
  // Rows that are read once are converted on the way to the registers. Rows that do not fill the last vector are always
  // converted first, so that nothing is read beyond their end.
  block.widen_keys = rows > kMaxRowsUnwidened || args.key_dim % kLanes != 0;
  block.widen_values = rows > kMaxRowsUnwidened || args.value_dim % kLanes != 0;
  float* scratch = args.scratch;
  const auto take = [&scratch](int64_t floats) {
    float* taken = scratch;
    scratch += RoundUp(floats, 16);
    return taken;
  };
  block.queries = take(rows * block.key_stride);
  block.outputs = take(rows * block.value_stride);
  block.partials = take(rows * block.value_stride);
  block.weights = take(rows * kLocalTile);
  block.maxima = take(rows);
  block.sums = take(rows);
  block.corrections = take(rows);
  block.seen = reinterpret_cast<uint64_t*>(take(args.block_queries * 2));
  block.wide_keys = take(kLocalTile * block.key_stride);
  block.wide_values = take(kLocalTile * block.value_stride);
  for (block.first_query = 0; block.first_query < args.query_count; block.first_query += args.block_queries) {
    block.query_count = Min(args.block_queries, args.query_count - block.first_query);
    AttendBlock(block);
  }
}

}  // namespace
}  // namespace mneme

#endif  // MNEME_ATTENTION_LOCAL_INL_H_
