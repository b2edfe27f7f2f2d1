// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_SEARCH_INL_H_
#define MNEME_ATTENTION_CUDA_SEARCH_INL_H_

#include "attention/cuda/local-inl.h"
#include "attention/cuda/scan-inl.h"

// The first kernel. Its grid is (column tiles * pieces, KV heads, sequences). The pieces of a sequence are the splits
// of its local rows and the ranges of its memory. Blocks with an empty piece end at once.
namespace mneme::cuda {

template <class MemoryKind, class LocalKind, int kDim, int kColumnTiles, class Block>
MNEME_DEVICE void Search(Block& block, const AttendProblem& problem, const AttendPlan& plan,
                         const Workspace& workspace) {
  constexpr int kColumns = kColumnTiles * kTileColumns;
  const int32_t pieces = plan.splits + plan.ranges;
  const auto piece = static_cast<int32_t>(block.x() % pieces);
  const auto sequence = static_cast<int32_t>(block.z());
  ColumnTile tile = {};
  tile.first_token = problem.query_offsets[sequence];
  tile.queries = problem.query_offsets[sequence + 1] - tile.first_token;
  tile.kv_head = static_cast<int32_t>(block.y());
  tile.group = problem.q_heads / problem.kv_heads;
  // Usually one round; more only if a sequence has more queries than the plan's bound.
  for (tile.first = block.x() / pieces * kColumns; tile.first < tile.queries * tile.group;
       tile.first += int64_t{plan.column_tiles} * kColumns) {
    if (piece < plan.splits) {
      const int64_t first_row = problem.local_offsets[sequence];
      AttendSplit<LocalKind, kDim, kColumnTiles>(block, problem, plan, workspace, tile, first_row,
                                                 problem.local_offsets[sequence + 1] - first_row, piece);
    } else {
      const MemoryRows memory = *problem.memories[sequence];
      ScanRange<MemoryKind, kDim, kColumnTiles>(block, problem, plan, workspace, tile, memory, piece - plan.splits);
    }
    block.Sync();
  }
}

// Returns: the bytes of shared memory of a block of the search.
template <int kDim, int kColumnTiles>
MNEME_HOST_DEVICE int64_t SearchSharedBytes(int64_t capacity) {
  constexpr int kColumns = kColumnTiles * kTileColumns;
  return Greatest<int64_t>(sizeof(LocalShared<kDim, kColumns>), ScanShared<kDim, kColumns>::Bytes(capacity));
}

// Calls `visit` with the kernel instance for a problem: the row types, the dimension and the tiles as types.
template <class Memory_, class Local_, int kDim_, int kColumnTiles_>
struct SearchInstance {
  using Memory = Memory_;
  using Local = Local_;
  static constexpr int kDim = kDim_;
  static constexpr int kColumnTiles = kColumnTiles_;
};

// Requires: the problem's queries are of type Local::kType.
template <class Local, class Visit>
void ForInstanceOf(const AttendProblem& problem, const AttendPlan& plan, const Visit& visit) {
  const auto with_dim = [&]<class Memory, int kDim>() {
    if (plan.columns == kDecodeColumns) {
      visit(SearchInstance<Memory, Local, kDim, kDecodeColumns / kTileColumns>{});
    } else {
      visit(SearchInstance<Memory, Local, kDim, kPrefillColumns / kTileColumns>{});
    }
  };
  const auto with_rows = [&]<class Memory>() {
    if (problem.key_dim == 64) with_dim.template operator()<Memory, 64>();
    if (problem.key_dim == 128) with_dim.template operator()<Memory, 128>();
    if (problem.key_dim == 256) with_dim.template operator()<Memory, 256>();
  };
  if (problem.memory_type == DType::kI8) {
    with_rows.template operator()<I8Rows>();
  } else {
    with_rows.template operator()<Local>();
  }
}

template <class Visit>
void ForInstance(const AttendProblem& problem, const AttendPlan& plan, const Visit& visit) {
  if (problem.type == DType::kF16) {
    ForInstanceOf<F16Rows>(problem, plan, visit);
  } else {
    ForInstanceOf<BF16Rows>(problem, plan, visit);
  }
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_SEARCH_INL_H_
