// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_GRAPH_NODES_H_
#define MNEME_HOSTS_LLAMACPP_SRC_GRAPH_NODES_H_

#include <bitset>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ggml.h"
#include "hosts/llamacpp/src/model_shape.h"
#include "hosts/llamacpp/src/status.h"

namespace mneme::llama {

// The nodes of llama.cpp's graph that the adapter stops at.
enum class NodeKind {
  kNone,
  kQuery,         // unrotated queries
  kKey,           // the keys that the memory keeps
  kPositions,     // rotated keys that the memory does not keep: they show the positions
  kValue,         // values
  kAttentionOut,  // attention output, before the output projection
};

struct NodeName {
  NodeKind kind = NodeKind::kNone;
  int32_t layer = -1;
};

// Finds the nodes of the chosen layers by their marks. Asked for every node of every graph.
class NodeTable {
 public:
  // rotated: the memory keeps rotated keys.
  NodeTable(const ModelShape& shape, const std::vector<int32_t>& layers, bool rotated);

  NodeName Find(const ggml_tensor& node) const;
  // The layer whose rotated keys show the positions; -1: no chosen layer has rotary embedding.
  int32_t position_layer() const { return position_layer_; }

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  struct Entry {
    ggml_op op;
    NodeName name;
  };

  void Add(const NodeMark& mark, NodeKind kind, int32_t layer);

  std::bitset<GGML_OP_COUNT> ops_;  // of any entry: tells most nodes without their name
  std::unordered_map<std::string, std::vector<Entry>, Hash, std::equal_to<>> entries_;
  int32_t position_layer_ = -1;
};

// Whether `node` has rows by heads: [dim, heads, tokens].
bool HasHeads(const ggml_tensor& node, int32_t dim, int32_t heads);

// A parameter of the node that is a float.
float FloatParameter(const ggml_tensor& node, int index);

// What stands behind an attention output: the attention node's own inputs, which are still intact when the output has
// just been computed.
struct AttentionInputs {
  const ggml_tensor* attention = nullptr;  // the node itself
  const ggml_tensor* query = nullptr;      // rotated [key_dim, tokens, q_heads] f32
  const ggml_tensor* keys = nullptr;       // the cache's cells [key_dim, cells, kv_heads], rotated
  const ggml_tensor* values = nullptr;     // the cache's cells [value_dim, cells, kv_heads]
  const ggml_tensor* mask = nullptr;       // [cells, tokens] f16: 0 or -infinity
  const ggml_tensor* rope = nullptr;       // the queries' rotary embedding; null: the last node that only moves rows,
  const ggml_tensor* other = nullptr;      // and what comes before it
  float scale = 1.0f;                      // score = scale * query·key
  float query_factor = 1.0f;               // what the rotated query was multiplied by before (Gemma)
  float soft_cap = 0.0f;
};

// The flash attention node of which `output` is the result; null if there is none.
const ggml_tensor* FlashAttentionOf(const ggml_tensor& output);

// Follows the sources of `output`. Errors: FailedPrecondition names the first thing that the adapter does not know.
Status TraceAttention(const ggml_tensor& output, AttentionInputs* inputs);

// The same, and compares what the context computes with what is known of `layer`. FailedPrecondition names the first
// thing that differs.
Status FindAttentionInputs(const ggml_tensor& output, const LayerShape& layer, AttentionInputs* inputs);

// What a rotary node does. Errors: FailedPrecondition for modes of several positions (M-RoPE).
Status ReadRotary(const ggml_tensor& rope, RotaryShape* rotary);

// The positions [tokens] by which a rotary node turned its rows. They are intact when the node has just been
// computed, and not for long: llama.cpp gives their place to others after the last layer.
Status FindPositions(const ggml_tensor& rope, const int32_t** positions);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_GRAPH_NODES_H_
