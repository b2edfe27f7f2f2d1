// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_PROBLEM_H_
#define MNEME_ATTENTION_CUDA_PROBLEM_H_

#include "attention/cuda/element.h"
#include "attention/fusion.h"
#include "attention/local_mask.h"

// The arguments of the fused kernels: plain data, with pointers to device memory. Everything that changes from step to
// step (lengths, row pointers, offsets) is read on the device, so that a captured CUDA graph may be replayed.
namespace mneme::cuda {

// The rows of one memory in one layer, on the device. Row r of head h begins at element (h * capacity + r) * dim and
// belongs to the token with index r.
struct MemoryRows {
  const void* keys = nullptr;           // [kv_heads, capacity, key_dim], aligned to 16 bytes
  const void* values = nullptr;         // [kv_heads, capacity, value_dim], aligned to 16 bytes
  const float* key_scales = nullptr;    // [kv_heads, capacity]; kI8 only
  const float* value_scales = nullptr;  // the same
  int64_t capacity = 0;                 // below 2^32
  int64_t begin = 0;                    // rows of [begin, end) are visible, 0 <= begin, end <= capacity
  int64_t end = 0;
  int64_t pinned = 0;  // rows below it take neither bias nor decay
  int64_t kept = 0;    // rows [pinned, kept) are not visible: they were evicted, the pinned rows before them were not
};

// One call: a decode step or a block of a prompt, for `batch` sequences of different lengths, each with its memory.
// Sequence b has the query tokens [query_offsets[b], query_offsets[b + 1]) and the local rows [local_offsets[b],
// local_offsets[b + 1]). Query head h reads KV head h / (q_heads / kv_heads).
struct AttendProblem {
  int64_t tokens = 0;  // query tokens of all sequences
  int32_t batch = 0;
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t key_dim = 0;              // 64, 128 or 256
  int32_t value_dim = 0;            // 64, 128 or 256
  int32_t top_k = 0;                // 0 … 256; 0: local rows alone
  DType type = DType::kF16;         // of query and local rows: kF16 or kBF16
  DType memory_type = DType::kF16;  // `type`, or kI8
  DType output_type = DType::kF32;  // kF32, kF16 or kBF16

  const void* query = nullptr;                  // [tokens, q_heads, key_dim]
  const void* memory_query = nullptr;           // the same shape; NULL: `query` searches the memory, too
  const int64_t* query_offsets = nullptr;       // [batch + 1], ascending from 0 to `tokens`
  const MemoryRows* const* memories = nullptr;  // [batch]; sequences may share one

  const void* local_keys = nullptr;        // rows of key_dim elements; NULL with local_values: no local rows
  const void* local_values = nullptr;      // rows of value_dim elements
  const int64_t* local_offsets = nullptr;  // [batch + 1]
  int64_t local_key_row_stride = 0;        // in elements, multiples of 8; so the head strides
  int64_t local_key_head_stride = 0;
  int64_t local_value_row_stride = 0;
  int64_t local_value_head_stride = 0;
  LocalMaskKind local_mask = LocalMaskKind::kCausal;  // not kBits
  int64_t local_window = 0;                           // kSlidingWindow: at least 1

  // logit = cap(scale * q·k), cap(s) = soft_cap * tanh(s / soft_cap); for a row of the memory that is not pinned, plus
  // bias - decay * max(0, log2(age / decay_beyond)), age = position - index. Per head: NULL means scale 1, bias 0,
  // decay 0, and top_k for every head.
  const float* scale = nullptr;         // [q_heads]
  const float* bias = nullptr;          // [q_heads]
  const float* decay = nullptr;         // [q_heads]; needs `positions`
  const int32_t* head_top_k = nullptr;  // [q_heads]; what exceeds top_k is cut to it
  const int64_t* positions = nullptr;   // [tokens]
  float soft_cap = 0;                   // 0: none
  float decay_beyond = 1;               // in tokens, above 0

  Fusion fusion = Fusion::kJoint;  // kJoint or kGated
  const float* gate = nullptr;     // [q_heads]; kGated

  void* output = nullptr;         // [tokens, q_heads, value_dim]
  float* log_sum_exp = nullptr;   // [tokens, q_heads], of all rows attended to; or NULL
  int64_t* found = nullptr;       // [tokens, q_heads, top_k], best first, -1 pads; or NULL
  float* found_logits = nullptr;  // the same, -infinity pads; or NULL
  float* memory_share = nullptr;  // [tokens, q_heads]: mass on the memory; gated: sigmoid(gate); or NULL
};

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_PROBLEM_H_
