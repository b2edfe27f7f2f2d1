// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_GRAPH_NODES_H_
#define MNEME_HOSTS_LLAMACPP_SRC_GRAPH_NODES_H_

#include <cstdint>

#include "ggml.h"
#include "hosts/llamacpp/src/model_shape.h"
#include "hosts/llamacpp/src/status.h"

namespace mneme::llama {

// The nodes of llama.cpp's graph that the adapter stops at.
enum class NodeKind {
  kNone,
  kQuery,         // unrotated queries [key_dim, q_heads, tokens]
  kKey,           // unrotated keys [key_dim, kv_heads, tokens]
  kRotatedKey,    // the same after rotary embedding
  kValue,         // values [value_dim, kv_heads, tokens]
  kAttentionOut,  // attention output [value_dim * q_heads, tokens], before the output projection
};

struct NodeName {
  NodeKind kind = NodeKind::kNone;
  int32_t layer = -1;
};

// Names are matched whole: "Kcur-3" is a key, "Kcur-3 (view)" is not (such a view may show rotated rows). `normed`: as
// in ModelShape. llama.cpp also gives the name to earlier stages: the flat product and its sum with a bias. Those are
// kNone; the operation tells them from the rows by heads. The shape does not: with one head and one token both are the
// same.
NodeName ParseNodeName(const ggml_tensor& node, bool normed);

// Whether `node` has rows by heads: [dim, heads, tokens].
bool HasHeads(const ggml_tensor& node, int32_t dim, int32_t heads);

// What stands behind an attention output: the attention node's own inputs, which are still intact when the output has
// just been computed.
struct AttentionInputs {
  const ggml_tensor* attention = nullptr;  // the node itself
  const ggml_tensor* query = nullptr;      // rotated [key_dim, tokens, q_heads] f32
  const ggml_tensor* keys = nullptr;       // the cache's cells [key_dim, cells, kv_heads], rotated
  const ggml_tensor* values = nullptr;     // the cache's cells [value_dim, cells, kv_heads]
  const ggml_tensor* mask = nullptr;       // [cells, tokens] f16: 0 or -infinity
  float scale = 1.0f;                      // score = scale * query·key
  float query_factor = 1.0f;               // what the rotated query was multiplied by before (Gemma)
};

// Follows the sources of `output` and compares what the context computes with what the model's metadata says of
// `layer`. FailedPrecondition names the first thing that the adapter does not know or that differs.
Status FindAttentionInputs(const ggml_tensor& output, const LayerShape& layer, AttentionInputs* inputs);

// The positions [tokens] by which a kRotatedKey node turned its rows. They are intact when the node has just been
// computed, and not for long: llama.cpp gives their place to others after the last layer.
Status FindPositions(const ggml_tensor& rotated_key, const int32_t** positions);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_GRAPH_NODES_H_
