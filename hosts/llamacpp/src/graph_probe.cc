// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/graph_probe.h"

#include <charconv>
#include <cstring>
#include <string_view>
#include <unordered_set>

#include "hosts/llamacpp/src/graph_nodes.h"

namespace mneme::llama {
namespace {

constexpr std::string_view kOutputName = "kqv_out-";

// "kqv_out-12" gives 12; -1 for other names.
int32_t LayerOfOutput(std::string_view name) {
  if (!name.starts_with(kOutputName)) return -1;
  int32_t layer = -1;
  const char* const end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + kOutputName.size(), end, layer);
  return error == std::errc() && rest == end ? layer : -1;
}

NodeMark MarkOf(const ggml_tensor& node) {
  return {node.name, node.op};
}

// Nodes that move rows and change none.
bool MovesRows(ggml_op op) {
  return op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE || op == GGML_OP_CONT;
}

bool HasRows(const ggml_tensor& node, int64_t dim, int64_t heads, int64_t tokens) {
  return node.op != GGML_OP_PERMUTE && HasHeads(node, static_cast<int32_t>(dim), static_cast<int32_t>(heads)) &&
         node.ne[2] == tokens;
}

// Whether rotary embedding is among what `node` is computed from in its layer: sources are followed up to the outputs
// of other layers' attention.
bool ComesFromRotary(const ggml_tensor* node) {
  std::unordered_set<const ggml_tensor*> seen;
  std::vector<const ggml_tensor*> todo = {node};
  while (!todo.empty()) {
    const ggml_tensor* const next = todo.back();
    todo.pop_back();
    if (next == nullptr || next->op == GGML_OP_FLASH_ATTN_EXT || !seen.insert(next).second) continue;
    if (next->op == GGML_OP_ROPE) return true;
    todo.insert(todo.end(), std::begin(next->src), std::end(next->src));
  }
  return false;
}

// Rows [dim, heads, tokens] from which `node` was made.
struct Rows {
  const ggml_tensor* unrotated = nullptr;
  const ggml_tensor* rotated = nullptr;  // the same where there is no rotary embedding
  bool rotary = false;
};

Status FindRows(const char* what, const ggml_tensor* node, int64_t dim, int64_t heads, int64_t tokens, Rows* rows) {
  const ggml_tensor* last = nullptr;  // nearest to where they are used
  while (node != nullptr && node->op != GGML_OP_ROPE) {
    if (last == nullptr && HasRows(*node, dim, heads, tokens)) last = node;
    if (!MovesRows(node->op) && !(node->op == GGML_OP_SCALE && FloatParameter(*node, 1) == 0.0f)) break;
    node = node->src[0];
  }
  const bool rotary = node != nullptr && node->op == GGML_OP_ROPE;
  if (!rotary && ComesFromRotary(node)) {
    return Refused(std::string("the ") + what + " pass " + ggml_op_name(node->op) +
                   " after rotary embedding, which is not served (multi-head latent attention does so)");
  }
  rows->rotary = rotary;
  rows->rotated = rotary ? node : last;
  rows->unrotated = rotary ? node->src[0] : last;
  if (rows->unrotated == nullptr || !HasRows(*rows->unrotated, dim, heads, tokens)) {
    return Refused(std::string("the graph has no ") + what + " by heads");
  }
  return Status();
}

int64_t SeenByLast(const ggml_tensor& mask, int64_t tokens) {
  if (mask.type != GGML_TYPE_F16 || mask.data == nullptr) return -1;
  const auto* row = reinterpret_cast<const uint16_t*>(static_cast<const char*>(mask.data) + (tokens - 1) * mask.nb[1]);
  int64_t seen = 0;
  for (int64_t cell = 0; cell < mask.ne[0]; ++cell) seen += (row[cell] & 0x7fffu) == 0;
  return seen;
}

}  // namespace

void GraphProbe::Add(const ggml_tensor& node) {
  ++marks_[{node.name, node.op}];
  if (node.op == GGML_OP_SET_ROWS) stores_.push_back(&node);
  if (node.op == GGML_OP_GET_ROWS && std::string_view(node.src[0]->name).starts_with("position_embd")) {
    learned_positions_ = true;
  }
  const int32_t number = LayerOfOutput(node.name);
  if (number < 0) return;
  LayerShape layer;
  if (const Status status = ReadLayer(node, &layer); !status.ok()) layer.refusal = status.message();
  layers_[number] = std::move(layer);
  const ggml_tensor* const attention = FlashAttentionOf(node);
  if (attention != nullptr && attention->src[3] != nullptr) seen_[number] = SeenByLast(*attention->src[3], tokens_);
}

const ggml_tensor* GraphProbe::FindStored(const ggml_tensor& cells) const {
  const ggml_tensor* root = &cells;
  while (root->view_src != nullptr || MovesRows(root->op) || root->op == GGML_OP_CPY) {
    root = root->view_src != nullptr ? root->view_src : root->src[0];
  }
  for (const ggml_tensor* store : stores_) {
    if (store->view_src == root) return store->src[0];
  }
  return nullptr;
}

Status GraphProbe::ReadLayer(const ggml_tensor& output, LayerShape* layer) const {
  AttentionInputs inputs;
  MNEME_LLAMA_RETURN_IF_ERROR(TraceAttention(output, &inputs));
  const ggml_tensor* const stored_keys = FindStored(*inputs.keys);
  const ggml_tensor* const stored_values = FindStored(*inputs.values);
  if (stored_keys == nullptr || stored_values == nullptr) {
    return Refused("it keeps no keys and values of its own: they are another layer's, or not cached");
  }
  if (stored_keys == stored_values) {
    return Refused("its values are a part of its keys: the model has multi-head latent attention (MLA)");
  }
  const int64_t key_dim = inputs.keys->ne[0];
  const int64_t value_dim = inputs.values->ne[0];
  const int64_t q_heads = inputs.query->ne[2];
  const int64_t kv_heads = inputs.keys->ne[2];
  if (kv_heads < 1 || q_heads % kv_heads != 0) return Refused("its heads do not fit together");
  Rows queries, keys, values;
  MNEME_LLAMA_RETURN_IF_ERROR(FindRows("queries", inputs.query, key_dim, q_heads, tokens_, &queries));
  MNEME_LLAMA_RETURN_IF_ERROR(FindRows("keys", stored_keys, key_dim, kv_heads, tokens_, &keys));
  MNEME_LLAMA_RETURN_IF_ERROR(FindRows("values", stored_values, value_dim, kv_heads, tokens_, &values));
  if (values.rotary || queries.rotary != keys.rotary ||
      (keys.rotary &&
       std::memcmp(queries.rotated->op_params, keys.rotated->op_params, sizeof(keys.rotated->op_params)) != 0)) {
    return Refused("its queries, keys and values have different rotary embeddings");
  }
  if (keys.unrotated == values.unrotated) return Refused("its keys and values are the same rows");
  if (keys.rotary) MNEME_LLAMA_RETURN_IF_ERROR(ReadRotary(*keys.rotated, &layer->rotary));
  layer->q_heads = static_cast<int32_t>(q_heads);
  layer->kv_heads = static_cast<int32_t>(kv_heads);
  layer->key_dim = static_cast<int32_t>(key_dim);
  layer->value_dim = static_cast<int32_t>(value_dim);
  layer->scale = inputs.scale * (queries.rotary ? inputs.query_factor : 1.0f);
  layer->soft_cap = inputs.soft_cap;
  layer->nodes = {.query = MarkOf(*queries.unrotated),
                  .key = MarkOf(*keys.unrotated),
                  .rotated_key = MarkOf(*keys.rotated),
                  .value = MarkOf(*values.unrotated),
                  .output = MarkOf(output)};
  return Status();
}

std::map<int32_t, LayerShape> GraphProbe::Layers() const {
  std::map<int32_t, LayerShape> layers = layers_;
  for (auto& [number, layer] : layers) {
    if (!layer.refusal.empty()) continue;
    const LayerNodes& nodes = layer.nodes;
    for (const NodeMark* mark : {&nodes.query, &nodes.key, &nodes.rotated_key, &nodes.value, &nodes.output}) {
      const auto found = marks_.find({mark->name, mark->op});
      if (found != marks_.end() && found->second == 1) continue;
      layer.refusal = "the graph does not tell its rows apart: several nodes are called " + mark->name;
    }
  }
  return layers;
}

std::set<int32_t> GraphProbe::LayersThatSeeLess(int64_t cells) const {
  std::set<int32_t> layers;
  for (const auto& [number, seen] : seen_) {
    if (seen < cells) layers.insert(number);
  }
  return layers;
}

}  // namespace mneme::llama
