// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_SCORE_INL_H_
#define MNEME_ATTENTION_CUDA_SCORE_INL_H_

#include "attention/cuda/element.h"

// Dot products of sixteen keys and eight queries on the tensor cores: mma.m16n8k16 with keys as its 16 rows and queries
// as its 8 columns. Keys are loaded from global memory directly to the registers of the product, without shared memory.
// The sum over the dimensions may be taken in any order, so a thread may hold any dimensions, as long as keys and
// queries agree. A thread loads 16 contiguous bytes of its row at a time; the four threads of a row load 64.
//
// The product's layout (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with lane = 4 * group + member:
//   keys     a[0], a[1] rows group, group + 8 at two dims; a[2], a[3] the same rows at two more
//   queries  b[0], b[1] column group at the same dims
//   scores   c[0], c[1] row group, columns 2 * member, 2 * member + 1; c[2], c[3] the same of row group + 8
namespace mneme::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kTileColumns = 8;

// The rows of one head.
struct KeySource {
  const char* rows;
  int64_t row_bytes;    // a multiple of 16
  const float* scales;  // I8Rows only
};

// A warp's sixteen keys as loaded: each thread holds its part of rows group and group + 8.
template <class Rows, int kDim>
struct KeyTile {
  static constexpr int kLoads = kDim / (4 * Rows::kPerLoad);
  Vec16 part[2][kLoads];
  float scale[2];
};

// Rows from `last` on are not read; their parts are 0.
template <class Block, class Rows, int kDim>
MNEME_DEVICE void LoadKeys(Block& block, const KeySource& source, int64_t first, int64_t last,
                           KeyTile<Rows, kDim>& tile) {
  MNEME_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + block.lane() / 4 + 8 * half;
    const char* const at = source.rows + row * source.row_bytes + block.lane() % 4 * 16;
    MNEME_UNROLL
    for (int i = 0; i < KeyTile<Rows, kDim>::kLoads; ++i) {
      tile.part[half][i] = row < last ? block.LoadStream16(at + 64 * i) : Vec16{};
    }
    if constexpr (Rows::kType == DType::kI8) tile.scale[half] = row < last ? source.scales[row] : 0.0f;
  }
}

// Queries lie in shared memory as 16-bit rows of this many elements: 64 bytes more than a multiple of 128, so that
// eight threads that read two neighbouring rows use different banks.
template <int kDim>
inline constexpr int kQueryStride = kDim + 32;

// The thread's part of the queries that goes with part `i` of a key.
template <class Block, class Rows, int kDim>
MNEME_DEVICE void QueryPairs(Block& block, const uint16_t* queries, int column_tile, int i,
                             uint32_t (&pairs)[Rows::kPerLoad / 2]) {
  const uint16_t* const row = queries + (column_tile * kTileColumns + block.lane() / 4) * kQueryStride<kDim>;
  const auto* const at =
      reinterpret_cast<const Vec16*>(row + i * 4 * Rows::kPerLoad + block.lane() % 4 * Rows::kPerLoad);
  MNEME_UNROLL
  for (int j = 0; j < Rows::kPerLoad / 8; ++j) {
    const Vec16 four = at[j];
    MNEME_UNROLL
    for (int x = 0; x < 4; ++x) pairs[4 * j + x] = four.x[x];
  }
}

// The queries of a block in the form that the products take. A single tile of columns stays in registers for the whole
// scan; several tiles are read from shared memory for each product.
template <class Rows, int kDim, int kColumnTiles>
struct QueryParts {
  static constexpr bool kInRegisters = kColumnTiles == 1;
  uint32_t pairs[kInRegisters ? KeyTile<Rows, kDim>::kLoads : 1][Rows::kPerLoad / 2];
  const uint16_t* queries;

  template <class Block>
  MNEME_DEVICE QueryParts(Block& block, const uint16_t* shared) : queries(shared) {
    if constexpr (kInRegisters) {
      MNEME_UNROLL
      for (int i = 0; i < KeyTile<Rows, kDim>::kLoads; ++i)
        QueryPairs<Block, Rows, kDim>(block, shared, 0, i, pairs[i]);
    }
  }
};

// scores[t]: the products of the keys and column tile t, in the product's layout.
template <class Block, class Rows, int kDim, int kColumnTiles>
MNEME_DEVICE void ScoreKeys(Block& block, const KeyTile<Rows, kDim>& tile,
                            const QueryParts<Rows, kDim, kColumnTiles>& queries, float (&scores)[kColumnTiles][4]) {
  constexpr int kPairs = Rows::kPerLoad / 2;
  MNEME_UNROLL
  for (int t = 0; t < kColumnTiles; ++t) {
    MNEME_UNROLL
    for (int e = 0; e < 4; ++e) scores[t][e] = 0.0f;
  }
  MNEME_UNROLL
  for (int i = 0; i < KeyTile<Rows, kDim>::kLoads; ++i) {
    uint32_t upper[kPairs], lower[kPairs];
    Rows::Unpack(tile.part[0][i], upper);
    Rows::Unpack(tile.part[1][i], lower);
    MNEME_UNROLL
    for (int t = 0; t < kColumnTiles; ++t) {
      uint32_t query[kPairs];
      if constexpr (QueryParts<Rows, kDim, kColumnTiles>::kInRegisters) {
        MNEME_UNROLL
        for (int j = 0; j < kPairs; ++j) query[j] = queries.pairs[i][j];
      } else {
        QueryPairs<Block, Rows, kDim>(block, queries.queries, t, i, query);
      }
      MNEME_UNROLL
      for (int j = 0; j < kPairs; j += 2) {
        const uint32_t a[4] = {upper[j], lower[j], upper[j + 1], lower[j + 1]};
        const uint32_t b[2] = {query[j], query[j + 1]};
        block.template Multiply<Rows::kProduct>(scores[t], a, b);
      }
    }
  }
}

// For element e of a thread's scores: the key within the tile, and the column within the column tile.
template <class Block>
MNEME_DEVICE int ScoreRow(Block& block, int e) {
  return block.lane() / 4 + 8 * (e / 2);
}
template <class Block>
MNEME_DEVICE int ScoreColumn(Block& block, int e) {
  return block.lane() % 4 * 2 + e % 2;
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_SCORE_INL_H_
