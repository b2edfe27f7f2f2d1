// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_SELECT_INL_H_
#define MNEME_ATTENTION_CUDA_SELECT_INL_H_

#include "attention/cuda/plan.h"
#include "attention/cuda/rank_key.h"

// Selects the k greatest of a set of rank keys by finding the bits of the k-th greatest key, the highest bit first: a
// bit is set if at least k keys are not less than the number so far. Keys differ, so the result does not depend on
// their order.
namespace mneme::cuda {

template <class Block>
MNEME_DEVICE float WarpSumOf(Block& block, float value) {
  MNEME_UNROLL
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value += block.ShuffleXor(value, mask);
  return value;
}

// Returns: the greatest of a warp's values; NaN if one is NaN.
template <class Block>
MNEME_DEVICE float WarpGreatestOf(Block& block, float value) {
  MNEME_UNROLL
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const float other = block.ShuffleXor(value, mask);
    value = value != value || other <= value ? value : other;
  }
  return value;
}

// Moves the k greatest of keys[0 … *count) to keys[0 … k), in any order. Returns: the least of them.
// Requires: 1 <= k < *count <= kMaxCapacity; the whole warp calls; `keys` and `count` lie in shared memory, and no
// other warp uses them meanwhile.
template <class Block>
MNEME_DEVICE uint64_t KeepBest(Block& block, uint64_t* keys, uint32_t* count, uint32_t k) {
  constexpr int kEach = kMaxCapacity / kLanes;
  const uint32_t n = *count;
  uint64_t mine[kEach];
  MNEME_UNROLL
  for (int i = 0; i < kEach; ++i) {
    const uint32_t at = static_cast<uint32_t>(i * kLanes + block.lane());
    mine[i] = at < n ? keys[at] : kNoRow;
  }
  uint64_t bound = 0;
  for (int bit = 63; bit >= 0; --bit) {
    const uint64_t candidate = bound | uint64_t{1} << bit;
    uint32_t reached = 0;
    MNEME_UNROLL
    for (int i = 0; i < kEach; ++i) reached += mine[i] >= candidate ? 1u : 0u;
    reached = block.WarpSum(reached);
    if (reached >= k) bound = candidate;
    if (reached == k) break;
  }
  if (block.lane() == 0) *count = 0;
  block.WarpSync();
  // The bits so far separate the k greatest from the others; the least of the k is a higher threshold.
  uint64_t least = ~uint64_t{0};
  MNEME_UNROLL
  for (int i = 0; i < kEach; ++i) {
    if (mine[i] >= bound && mine[i] != kNoRow) {
      keys[block.AtomicAdd(count, 1u)] = mine[i];
      least = Least(least, mine[i]);
    }
  }
  block.WarpSync();
  MNEME_UNROLL
  for (int mask = kLanes / 2; mask > 0; mask /= 2) least = Least(least, block.ShuffleXor(least, mask));
  return least;
}

// Returns: the sum of `value` over the block, to every thread. partials: [2][kWarps] in shared memory. turn: 0 and 1 in
// alternate calls, so that one barrier for each call is enough.
template <class Block>
MNEME_DEVICE uint32_t BlockSumOf(Block& block, uint32_t value, uint32_t* partials, int turn) {
  uint32_t* const mine = partials + turn * Block::kWarps;
  value = block.WarpSum(value);
  if (block.lane() == 0) mine[block.warp()] = value;
  block.Sync();
  uint32_t sum = 0;
  for (int w = 0; w < Block::kWarps; ++w) sum += mine[w];
  return sum;
}

// Writes the k greatest of keys[0 … n) that are not kNoRow to best[0 … k), greatest first. Returns: how many there are;
// fewer than k if there are fewer rows. The result is visible to all threads. Requires: the whole block calls, after a
// barrier that makes `keys` visible; all arguments lie in shared memory, `scratch` [k] and `partials` [2][kWarps].
template <class Block>
MNEME_DEVICE uint32_t SortedBest(Block& block, const uint64_t* keys, uint32_t n, uint32_t k, uint64_t* scratch,
                                 uint64_t* best, uint32_t* partials, uint32_t* counter) {
  int turn = 0;
  const auto reached_by = [&](uint64_t bound) {
    uint32_t reached = 0;
    for (uint32_t i = static_cast<uint32_t>(block.thread()); i < n; i += Block::kThreads) {
      reached += keys[i] >= bound ? 1u : 0u;
    }
    reached = BlockSumOf(block, reached, partials, turn);
    turn ^= 1;
    return reached;
  };
  if (block.thread() == 0) *counter = 0;
  const uint32_t rows = reached_by(1);
  const uint32_t kept = Least(k, rows);
  if (kept == 0) return 0;
  uint64_t bound = 1;
  if (rows > k) {
    bound = 0;
    for (int bit = 63; bit >= 0; --bit) {
      const uint64_t candidate = bound | uint64_t{1} << bit;
      const uint32_t reached = reached_by(candidate);
      if (reached >= k) bound = candidate;
      if (reached == k) break;
    }
  }
  for (uint32_t i = static_cast<uint32_t>(block.thread()); i < n; i += Block::kThreads) {
    if (keys[i] >= bound) scratch[block.AtomicAdd(counter, 1u)] = keys[i];
  }
  block.Sync();
  // A key's place is the number of keys above it.
  for (uint32_t i = static_cast<uint32_t>(block.thread()); i < kept; i += Block::kThreads) {
    uint32_t place = 0;
    for (uint32_t j = 0; j < kept; ++j) place += scratch[j] > scratch[i] ? 1u : 0u;
    best[place] = scratch[i];
  }
  block.Sync();
  return kept;
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_SELECT_INL_H_
