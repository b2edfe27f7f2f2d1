// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_SELF_CHECK_H_
#define MNEME_HOSTS_LLAMACPP_SRC_SELF_CHECK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "hosts/llamacpp/src/model_shape.h"

namespace mneme::llama {

// A layer's rows as the adapter has captured them, of the first tokens of a window. [tokens, heads, dim]
struct CapturedRows {
  std::span<const float> queries;
  std::span<const float> keys;
  std::span<const float> values;
  std::span<const int32_t> positions;  // [tokens]
  bool rotated = false;  // queries and keys; otherwise they are turned here, as the memory's rows would be
  float scale = 1.0f;    // score = scale * query·key
  // What llama.cpp rounds to: keys and values in its cache, and queries for batches of few tokens. Models with large
  // keys (Qwen 2) attend visibly differently for it.
  ggml_type cache_type = GGML_TYPE_F32;
  ggml_type query_type = GGML_TYPE_F32;
};

// Computes causal attention over captured rows in double precision, by the card's rotary settings, and compares it with
// `output` [tokens, q_heads * value_dim], the model's own.
// Returns: the largest difference, as a share of the largest value of `output`; infinity if a number is not finite.
double AttentionDifference(const LayerShape& layer, const CapturedRows& rows, std::span<const float> output);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_SELF_CHECK_H_
