// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_COLUMNS_INL_H_
#define MNEME_ATTENTION_CUDA_COLUMNS_INL_H_

#include "attention/cuda/plan.h"
#include "attention/cuda/score-inl.h"
#include "attention/cuda/select-inl.h"

// The queries that one block takes together. The columns of a sequence and KV head are its (token, head of the group)
// pairs, token by token. A block takes a tile of columns, so each key is read once for all of them.
namespace mneme::cuda {

struct ColumnTile {
  int64_t first_token;  // of the sequence
  int64_t queries;      // of the sequence
  int64_t first;        // column of the sequence that the tile begins with
  int32_t kv_head;
  int32_t group;

  MNEME_DEVICE bool Has(int column) const { return first + column < queries * group; }
  // The number of a column's query within its sequence, and its query head. Requires: the tile has the column.
  MNEME_DEVICE int64_t Query(int column) const { return (first + column) / group; }
  MNEME_DEVICE int32_t Head(int column) const {
    return kv_head * group + static_cast<int32_t>((first + column) % group);
  }
  // The column's row in [tokens, q_heads].
  MNEME_DEVICE int64_t Pair(int column, int32_t q_heads) const {
    return (first_token + Query(column)) * q_heads + Head(column);
  }
};

// How one column ranks the rows of a memory. Lies in shared memory.
struct Column {
  uint64_t threshold;  // only keys above it may be among the best
  int64_t position;
  float threshold_logit;  // the logit of `threshold`
  float scale;            // of the product as it was made: the head's, and what staging took off the query
  float bias;
  float decay;
  uint32_t count;  // candidates
  uint32_t top_k;
};

MNEME_HOST_DEVICE uint32_t HeadTopK(const AttendProblem& problem, int32_t head) {
  if (problem.head_top_k == nullptr) return static_cast<uint32_t>(problem.top_k);
  return static_cast<uint32_t>(Greatest(0, Least(problem.top_k, problem.head_top_k[head])));
}

MNEME_HOST_DEVICE float SoftCapped(float score, float soft_cap) {
  return soft_cap > 0 ? soft_cap * tanhf(score / soft_cap) : score;
}

// The part of a row's logit that depends on its age: bias and decay, for rows that are not pinned.
MNEME_HOST_DEVICE float AgeTerm(float bias, float decay, int64_t age, float decay_beyond) {
  if (decay == 0.0f) return bias;
  const float ratio = static_cast<float>(age) / decay_beyond;
  return ratio > 1.0f ? bias - decay * log2f(ratio) : bias;
}

// Copies the tile's queries to shared memory as 16-bit rows (kQueryStride). For each column, lane 0 of the warp that
// copied it calls write(column, factor): products with the column must be multiplied by the factor. Rows of bytes are
// multiplied as f16. For them a query is scaled by the power of two that brings its greatest element to 2^14 … 2^15; so
// a bf16 query keeps its range, and f16 loses only what is below 2^-38 of the greatest element.
template <class Rows, int kDim, int kColumns, class Block, class Write>
MNEME_DEVICE void StageQueries(Block& block, const AttendProblem& problem, const void* source, const ColumnTile& tile,
                               uint16_t* queries, const Write& write) {
  constexpr int kEach = kDim / (2 * kLanes);
  for (int column = block.warp(); column < kColumns; column += Block::kWarps) {
    uint32_t pairs[kEach];
    const bool has = tile.Has(column);
    const auto* const row =
        static_cast<const uint32_t*>(source) + (has ? tile.Pair(column, problem.q_heads) : int64_t{0}) * (kDim / 2);
    MNEME_UNROLL
    for (int i = 0; i < kEach; ++i) pairs[i] = has ? row[i * kLanes + block.lane()] : 0u;
    float factor = 1.0f;
    if constexpr (Rows::kType == DType::kI8) {
      float greatest = 0.0f;
      MNEME_UNROLL
      for (int i = 0; i < kEach; ++i) {
        greatest = Greatest(greatest, fabsf(Widen(problem.type, static_cast<uint16_t>(pairs[i]))));
        greatest = Greatest(greatest, fabsf(Widen(problem.type, static_cast<uint16_t>(pairs[i] >> 16))));
      }
      greatest = WarpGreatestOf(block, greatest);
      const int exponent = static_cast<int>(BitsOf(greatest) >> 23) - 127;
      const int shift = Least(100, Greatest(-100, 14 - exponent));
      const float power = FloatOf(static_cast<uint32_t>(127 + shift) << 23);
      factor = FloatOf(static_cast<uint32_t>(127 - shift) << 23);
      MNEME_UNROLL
      for (int i = 0; i < kEach; ++i) {
        const uint32_t low = F32ToF16(Widen(problem.type, static_cast<uint16_t>(pairs[i])) * power);
        const uint32_t high = F32ToF16(Widen(problem.type, static_cast<uint16_t>(pairs[i] >> 16)) * power);
        pairs[i] = low | high << 16;
      }
    }
    auto* const to = reinterpret_cast<uint32_t*>(queries + column * kQueryStride<kDim>);
    MNEME_UNROLL
    for (int i = 0; i < kEach; ++i) to[i * kLanes + block.lane()] = pairs[i];
    if (block.lane() == 0) write(column, factor);
  }
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_COLUMNS_INL_H_
