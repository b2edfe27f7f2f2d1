// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_ATTEND_ARGS_H_
#define MNEME_CAPI_SRC_ATTEND_ARGS_H_

#include <memory>
#include <memory_resource>
#include <vector>

#include "absl/status/status.h"

#include "capi/src/handles.h"
#include "memory/attend/request.h"
#include "mneme.h"

namespace mneme::capi {

// A batch after its handles are looked up. Holds what they stand for while the call runs; `memory` outlives it.
struct Batch {
  explicit Batch(std::pmr::memory_resource* memory) : memories(memory), snapshots(memory) {}

  std::pmr::vector<std::shared_ptr<MemoryObject>> memories;     // [batch], null entries: no memory
  std::pmr::vector<std::shared_ptr<SnapshotObject>> snapshots;  // [batch], null entries: none
  const MemoryObject* first = nullptr;                          // the first that there is; null: none

  // Looks up the handles and makes sure that all memories have the layer with the same shape.
  static absl::StatusOr<Batch> Read(mneme_memory* const* memories, size_t batch, const mneme_snapshot* const* snapshots,
                                    int32_t layer, std::pmr::memory_resource* memory);
  const LayerCard* Layer(int32_t layer) const;
};

// The parts that attend and search share, already taken out of their own structs.
struct RetrieveArgs {
  int32_t position_policy;
  int32_t normalise_query;
  const int64_t* query_offsets;
  const int64_t* query_positions;
  const int64_t* query_local_positions;
  const int64_t* memory_begin;
  const int64_t* memory_end;
  const int64_t* top_k;
  const float* distance;
  const float* memory_bias;
  const float* decay;
  const float* scale;
  const float* gate;
  int64_t default_top_k;
  float default_distance;
  float decay_beyond;
};

// Fills `request`, and the rules and sequences that its spans are of. `tokens` is the number of queries.
absl::Status ReadRetrieve(const RetrieveArgs& args, const Batch& batch, const LayerCard& layer, int64_t tokens,
                          RetrieveRequest& request, std::pmr::vector<HeadRule>& heads,
                          std::pmr::vector<Sequence>& sequences);

// 1 / sqrt(key_dim): the scale where no card says another.
float UsualScale(int64_t key_dim);

// Token indices and positions beyond this are none of anything; distances between smaller ones cannot overflow.
inline constexpr int64_t kMaxPosition = int64_t{1} << 48;

absl::Status CheckPositions(absl::string_view name, const int64_t* positions, int64_t n);

// Ascending offsets from 0 to `total`; null is right for one sequence only.
absl::Status CheckOffsets(absl::string_view name, const int64_t* offsets, size_t batch, int64_t total);

absl::Status CheckFinite(absl::string_view name, const RowTensor& tensor);

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_ATTEND_ARGS_H_
