// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_ATTEND_H_
#define MNEME_MEMORY_ATTEND_ATTEND_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "attention/local.h"
#include "base/parallel.h"
#include "base/tensor.h"
#include "memory/memory.h"

namespace mneme {

enum class PositionPolicy : uint8_t { kAsStored = 0, kFixedDistance = 1, kWindowStart = 2, kClamped = 3 };
enum class Fusion : uint8_t { kJoint = 0, kGated = 1, kMemoryOnly = 2, kLocalOnly = 3 };

// What one query head does with its memory.
struct HeadRule {
  int64_t top_k = 32;
  float distance = 0;
  float memory_bias = 0;
  float decay = 0;
  float scale = 1;
  float gate = 0;
};

// One sequence of a batch: its queries, its local rows and its memory.
struct Sequence {
  Memory* memory = nullptr;            // null: none
  const Snapshot* snapshot = nullptr;  // of that memory; null: as it is now
  int64_t query_begin = 0;
  int64_t query_end = 0;
  int64_t local_begin = 0;
  int64_t local_end = 0;
  int64_t memory_begin = 0;
  int64_t memory_end = -1;  // -1: all rows that the layer has
  int64_t mask_offset = 0;
};

// What both search and attend need to know to retrieve.
struct RetrieveRequest {
  explicit RetrieveRequest(const LayerCard& card) : layer(card) {}

  const LayerCard& layer;  // shapes and rotary, borrowed; all memories of the batch agree with it
  RowTensor memory_query;  // [tokens, query_heads, key_dim]
  bool normalise_query = false;
  PositionPolicy policy = PositionPolicy::kAsStored;
  const int64_t* query_positions = nullptr;        // [tokens]; null: memory_end + max(0, m - n) + i
  const int64_t* query_local_positions = nullptr;  // [tokens], kWindowStart
  bool joint = true;                               // memory_bias counts
  float decay_beyond = 1;
  absl::Span<const HeadRule> heads;  // [query_heads]
  absl::Span<const Sequence> sequences;
};

struct AttendRequest {
  explicit AttendRequest(const LayerCard& layer) : retrieve(layer) {}

  RetrieveRequest retrieve;
  RowTensor query;       // [tokens, query_heads, key_dim], as the local keys want it
  RowTensor local_keys;  // rows 0: no local window
  RowTensor local_values;
  LocalMask mask;  // offset is taken from each sequence
  Fusion fusion = Fusion::kJoint;

  MutableRowTensor output;              // [tokens, query_heads, value_dim]
  float* log_sum_exp = nullptr;         // [tokens, query_heads]
  int64_t* retrieved_tokens = nullptr;  // [tokens, query_heads, retrieved_stride]
  float* retrieved_scores = nullptr;
  int64_t retrieved_stride = 0;
  float* memory_mass = nullptr;
  absl::Span<absl::Status> statuses;  // [sequences]; empty: the first failure ends the call
};

// Attention over retrieved and local rows; the arguments are valid (capi/ checks them). Results do not depend on the
// executor. DataLoss if rows that are needed are damaged; then nothing was written for that sequence but zeros.
absl::Status Attend(const AttendRequest& request, Executor& executor);

struct SearchRequest {
  explicit SearchRequest(const RetrieveRequest& rows) : retrieve(rows) {}

  RetrieveRequest retrieve;
  int64_t top_k = 0;
  int64_t* tokens = nullptr;  // [tokens, query_heads, top_k]
  float* scores = nullptr;    // may be null, as the next two
  float* keys = nullptr;      // f32 [tokens, query_heads, top_k, key_dim]
  float* values = nullptr;    // f32 [tokens, query_heads, top_k, value_dim]
};

absl::Status Search(const SearchRequest& request, Executor& executor);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_ATTEND_H_
