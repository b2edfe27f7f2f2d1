// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_REQUEST_H_
#define MNEME_MEMORY_ATTEND_REQUEST_H_

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "attention/fusion.h"
#include "attention/local.h"
#include "base/tensor.h"
#include "memory/memory.h"

namespace mneme {

// How rotary position enters the score of a retrieved key. The host rotates stored keys (kAsStored) or stores them
// unrotated, and then the query is rotated instead.
enum class PositionPolicy : uint8_t {
  kAsStored = 0,       // keys and queries are used as they are
  kFixedDistance = 1,  // every key counts as HeadRule::distance tokens away
  kWindowStart = 2,    // every key counts as the first row of the query's local window
  kClamped = 3,        // a key counts as min(its true distance, HeadRule::distance) tokens away
};

// What one query head does with its memory.
struct HeadRule {
  int64_t top_k = 32;     // rows to retrieve; 0: this head has no memory
  float distance = 0;     // tokens; kFixedDistance and kClamped
  float memory_bias = 0;  // added to the logits of retrieved rows in joint fusion, pinned rows excepted
  float decay = 0;        // taken off a retrieved row's logit for each doubling of its age beyond
                          // RetrieveRequest::decay_beyond; pinned rows excepted
  float scale = 1;        // logit = scale * q·k
  float gate = 0;         // kGated
};

// One sequence of a batch: its queries, its local rows and its memory. query_* and local_* number rows of the batch's
// tensors. memory_* are token indices of the memory.
struct Sequence {
  Memory* memory = nullptr;            // null: none
  const Snapshot* snapshot = nullptr;  // of `memory`; null: its present state
  int64_t query_begin = 0;
  int64_t query_end = 0;
  int64_t local_begin = 0;
  int64_t local_end = 0;
  int64_t memory_begin = 0;  // the first visible token
  int64_t memory_end = -1;   // one past the last visible token; -1: all rows of the layer
  int64_t mask_offset = 0;   // LocalMask::offset
};

// The arguments that Attend and Search share. In shapes, [tokens] counts the queries of the whole batch: one for each
// token that is decoded. It has nothing to do with the tokens of a memory.
struct RetrieveRequest {
  explicit RetrieveRequest(const LayerCard& card) : layer(card) {}

  const LayerCard& layer;  // borrowed; shapes and rotary settings of this layer in every memory of the batch
  RowTensor memory_query;  // [tokens, query_heads, key_dim]
  bool normalise_query = false;
  PositionPolicy policy = PositionPolicy::kAsStored;
  const int64_t* query_positions = nullptr;        // [tokens]; null: see QueryPosition
  const int64_t* query_local_positions = nullptr;  // [tokens]; kWindowStart
  bool use_memory_bias = true;                     // HeadRule::memory_bias counts: only in joint fusion
  float decay_beyond = 1;                          // tokens: rows of at most this age have no decay
  absl::Span<const HeadRule> heads;                // [query_heads]
  absl::Span<const Sequence> sequences;
};

// One call of Attend. All arrays and tensors are borrowed.
struct AttendRequest {
  explicit AttendRequest(const LayerCard& layer) : retrieve(layer) {}

  RetrieveRequest retrieve;
  RowTensor query;       // [tokens, query_heads, key_dim], rotated as the local keys are
  RowTensor local_keys;  // [local rows, kv_heads, key_dim]; data null: none
  RowTensor local_values;
  LocalMask mask;  // its offset comes from each sequence
  Fusion fusion = Fusion::kJoint;

  MutableRowTensor output;              // [tokens, query_heads, value_dim]
  float* log_sum_exp = nullptr;         // [tokens, query_heads]; or null, as the next three
  int64_t* retrieved_tokens = nullptr;  // [tokens, query_heads, retrieved_stride], best first, -1 pads
  float* retrieved_scores = nullptr;    // their logits, the same shape, -infinity pads
  float* memory_mass = nullptr;         // [tokens, query_heads]: the memory's share of the attention mass
  int64_t retrieved_stride = 0;         // 0: no retrieved rows are reported
  absl::Span<absl::Status> statuses;    // [sequences]; empty: the first failure ends the call
};

// Whether sequence `number` of the batch has failed so far. It is not searched then, and its outputs are empty states.
inline bool HasFailed(const AttendRequest& request, size_t number) {
  return !request.statuses.empty() && !request.statuses[number].ok();
}

// Whether a call can retrieve rows of a memory.
inline bool RetrievesRows(const AttendRequest& request) {
  return request.fusion != Fusion::kLocalOnly &&
         std::any_of(request.retrieve.heads.begin(), request.retrieve.heads.end(),
                     [](const HeadRule& rule) { return rule.top_k > 0; });
}

// One call of Search: retrieved rows without attention.
struct SearchRequest {
  explicit SearchRequest(const RetrieveRequest& rows) : retrieve(rows) {}

  RetrieveRequest retrieve;
  int64_t top_k = 0;          // of every head, equal to HeadRule::top_k
  int64_t* tokens = nullptr;  // [tokens, query_heads, top_k] token indices, best first; -1 pads
  float* scores = nullptr;    // logits, the same shape, -infinity pads; or null, as the next two
  float* keys = nullptr;      // [tokens, query_heads, top_k, key_dim]
  float* values = nullptr;    // [tokens, query_heads, top_k, value_dim]
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_REQUEST_H_
