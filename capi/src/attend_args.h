// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_ATTEND_ARGS_H_
#define MNEME_CAPI_SRC_ATTEND_ARGS_H_

#include <memory>
#include <memory_resource>
#include <vector>

#include "absl/status/status.h"

#include "capi/src/handles.h"
#include "memory/attend/argument_error.h"
#include "memory/attend/request.h"
#include "mneme.h"

namespace mneme::capi {

// The objects of a batch's handles, held while the call runs. The containers take their bytes from `arena`, which
// outlives the object.
struct Batch {
  explicit Batch(std::pmr::memory_resource* arena) : memories(arena), snapshots(arena) {}

  std::pmr::vector<std::shared_ptr<MemoryObject>> memories;     // [batch], null entries: no memory
  std::pmr::vector<std::shared_ptr<SnapshotObject>> snapshots;  // [batch], null entries: none
  const MemoryObject* first = nullptr;                          // the first memory; null: there is none

  // Errors: InvalidArgument for a handle that is not open, or if the memories do not have the layer with equal cards.
  static absl::StatusOr<Batch> Read(mneme_memory* const* memories, size_t batch, const mneme_snapshot* const* snapshots,
                                    int32_t layer, std::pmr::memory_resource* arena);
  // Returns: the layer's card; null if there is no memory.
  const LayerCard* Layer(int32_t layer) const;
};

// The arguments that attend and search share, copied from their structs.
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

// Checks the arguments and fills `request`, whose spans then point to `heads` and `sequences`. tokens: how many queries
// there are.
absl::Status ReadRetrieve(const RetrieveArgs& args, const Batch& batch, const LayerCard& layer, int64_t tokens,
                          RetrieveRequest& request, std::pmr::vector<HeadRule>& heads,
                          std::pmr::vector<Sequence>& sequences);

// Token indices and positions beyond this are invalid. Differences of valid ones cannot overflow.
inline constexpr int64_t kMaxPosition = int64_t{1} << 48;

absl::Status CheckPositions(absl::string_view name, const int64_t* positions, int64_t n);

// Requires offsets that ascend from 0 to `total`. Null is valid for a batch of one sequence.
absl::Status CheckOffsets(absl::string_view name, const int64_t* offsets, size_t batch, int64_t total);

// Returns: an error of the engine with the ABI's name of the argument that it is about, for instance
// "args.query_offsets[1]: expected …" for "query_offsets[1]: expected …". Other statuses are returned unchanged.
absl::Status NameArgument(const absl::Status& status);

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_ATTEND_ARGS_H_
