// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/graph_nodes.h"

#include <cmath>
#include <cstring>
#include <string>

#include "ggml-backend.h"

namespace mneme::llama {
namespace {

bool Close(float a, float b) {
  return std::fabs(a - b) <= 1e-5f * std::fmax(std::fabs(a), std::fabs(b));
}

Status Differs(const char* what, double model, double context) {
  return Refused(std::string("the context computes with ") + what + " " + std::to_string(context) +
                 ", the model was read with " + std::to_string(model));
}

Status CheckRotary(const ggml_tensor& rope, const RotaryShape& expected) {
  RotaryShape found;
  MNEME_LLAMA_RETURN_IF_ERROR(ReadRotary(rope, &found));
  if (found.dims != expected.dims) return Differs("rotary dims", expected.dims, found.dims);
  if (found.halves != expected.halves) return Differs("rotary mode", expected.halves, found.halves);
  struct Pair {
    const char* what;
    float expected, found;
  };
  for (const Pair& pair : {Pair{"rotary base", expected.base, found.base},
                           {"rotary scale", expected.scale, found.scale},
                           {"YaRN's mix", expected.yarn_mix, found.yarn_mix},
                           {"rotary magnitude", RotaryMagnitude(expected), RotaryMagnitude(found)}}) {
    if (!Close(pair.found, pair.expected)) return Differs(pair.what, pair.expected, pair.found);
  }
  if (found.divisors != expected.divisors) {
    return Refused(
        "the context uses other rotary factors than the model was read with; of a model that switches "
        "between two sets (LongRoPE) those of the shorter context are served");
  }
  return Status();
}

bool OnHost(const ggml_tensor& tensor) {
  const ggml_backend_buffer_t buffer = tensor.view_src != nullptr ? tensor.view_src->buffer : tensor.buffer;
  return buffer != nullptr && ggml_backend_buffer_is_host(buffer);
}

// A view of rows that mneme can read in place.
Status CheckRows(const char* what, const ggml_tensor& rows, int64_t dim, int64_t heads) {
  if (!OnHost(rows)) {
    return Refused(std::string(what) +
                   " lie in a device's memory; only the CPU is served (n_gpu_layers = 0, "
                   "offload_kqv = false)");
  }
  if (rows.type != GGML_TYPE_F32 && rows.type != GGML_TYPE_F16 && rows.type != GGML_TYPE_BF16) {
    return Refused(std::string(what) + " have type " + ggml_type_name(rows.type));
  }
  if (rows.ne[0] != dim || rows.ne[2] != heads || rows.ne[3] != 1 || rows.nb[0] != ggml_type_size(rows.type)) {
    return Refused(std::string(what) + " have an unexpected shape");
  }
  return Status();
}

}  // namespace

float FloatParameter(const ggml_tensor& node, int index) {
  float value;
  std::memcpy(&value, &node.op_params[index], sizeof(value));
  return value;
}

NodeTable::NodeTable(const ModelShape& shape, const std::vector<int32_t>& layers, bool rotated) {
  for (const int32_t layer : layers) {
    const LayerNodes& nodes = shape.layers[layer].nodes;
    if (!rotated) Add(nodes.query, NodeKind::kQuery, layer);
    Add(rotated ? nodes.rotated_key : nodes.key, NodeKind::kKey, layer);
    Add(nodes.value, NodeKind::kValue, layer);
    Add(nodes.output, NodeKind::kAttentionOut, layer);
    if (position_layer_ >= 0 || shape.layers[layer].rotary.dims == 0) continue;
    position_layer_ = layer;
    if (!rotated) Add(nodes.rotated_key, NodeKind::kPositions, layer);
  }
}

void NodeTable::Add(const NodeMark& mark, NodeKind kind, int32_t layer) {
  ops_.set(mark.op);
  entries_[mark.name].push_back({mark.op, {kind, layer}});
}

NodeName NodeTable::Find(const ggml_tensor& node) const {
  if (!ops_.test(node.op)) return {};
  const auto found = entries_.find(std::string_view(node.name));
  if (found == entries_.end()) return {};
  for (const Entry& entry : found->second) {
    if (entry.op == node.op) return entry.name;
  }
  return {};
}

bool HasHeads(const ggml_tensor& node, int32_t dim, int32_t heads) {
  return node.type == GGML_TYPE_F32 && node.ne[0] == dim && node.ne[1] == heads && node.ne[3] == 1 &&
         node.nb[0] == sizeof(float);
}

// The parameters, as ggml_rope_ext lays them down: 1 dims, 2 mode, 4 context, 5 base, 6 scale, 7 YaRN's mix,
// 8 magnitude, 9 and 10 YaRN's betas.
Status ReadRotary(const ggml_tensor& rope, RotaryShape* rotary) {
  const int32_t mode = rope.op_params[2];
  if (mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) {
    return Refused("rotary embedding of mode " + std::to_string(mode) + " (positions of several parts) is not served");
  }
  *rotary = RotaryShape();
  rotary->halves = mode == GGML_ROPE_TYPE_NEOX;
  rotary->dims = rope.op_params[1];
  rotary->base = FloatParameter(rope, 5);
  rotary->scale = FloatParameter(rope, 6);
  rotary->factor = FloatParameter(rope, 8);
  rotary->yarn_mix = FloatParameter(rope, 7);
  if (rotary->yarn_mix != 0.0f) {
    rotary->yarn_context = rope.op_params[4];
    rotary->yarn_beta_fast = FloatParameter(rope, 9);
    rotary->yarn_beta_slow = FloatParameter(rope, 10);
  }
  const ggml_tensor* divisors = rope.src[2];
  if (divisors == nullptr) return Status();
  if (divisors->type != GGML_TYPE_F32 || divisors->ne[0] < rotary->dims / 2 || divisors->buffer == nullptr) {
    return Refused("the rotary factors have an unexpected type or shape");
  }
  rotary->divisors.resize(static_cast<size_t>(rotary->dims) / 2);
  ggml_backend_tensor_get(divisors, rotary->divisors.data(), 0, rotary->divisors.size() * sizeof(float));
  return Status();
}

const ggml_tensor* FlashAttentionOf(const ggml_tensor& output) {
  const ggml_tensor* node = &output;
  while (node != nullptr && node->op == GGML_OP_RESHAPE) node = node->src[0];
  return node != nullptr && node->op == GGML_OP_FLASH_ATTN_EXT ? node : nullptr;
}

Status TraceAttention(const ggml_tensor& output, AttentionInputs* inputs) {
  const ggml_tensor* const attention = FlashAttentionOf(output);
  if (attention == nullptr) {
    return Refused(
        "the attention output does not come straight from a flash attention node: the model has multi-head "
        "latent attention (MLA) or a bias of its scores, or flash attention is off");
  }
  if (attention->src[4] != nullptr) return Refused("the model has attention sinks as weights, which are not served");
  if (attention->src[3] == nullptr) return Refused("attention runs without a mask");
  AttentionInputs found;
  found.attention = attention;
  found.query = attention->src[0];
  found.keys = attention->src[1];
  found.values = attention->src[2];
  found.mask = attention->src[3];
  found.scale = FloatParameter(*attention, 0);
  if (FloatParameter(*attention, 1) != 0.0f) return Refused("attention is biased by distance (ALiBi)");
  found.soft_cap = FloatParameter(*attention, 2);

  const ggml_tensor* node = found.query;
  while (node != nullptr && node->op != GGML_OP_ROPE) {
    if (node->op == GGML_OP_SCALE && FloatParameter(*node, 1) == 0.0f) {
      found.query_factor *= FloatParameter(*node, 0);
    } else if (node->op != GGML_OP_PERMUTE && node->op != GGML_OP_VIEW && node->op != GGML_OP_RESHAPE &&
               node->op != GGML_OP_CONT) {
      break;
    }
    node = node->src[0];
  }
  (node != nullptr && node->op == GGML_OP_ROPE ? found.rope : found.other) = node;
  *inputs = found;
  return Status();
}

Status FindAttentionInputs(const ggml_tensor& output, const LayerShape& layer, AttentionInputs* inputs) {
  AttentionInputs found;
  MNEME_LLAMA_RETURN_IF_ERROR(TraceAttention(output, &found));
  if (layer.rotary.dims > 0) {
    if (found.rope == nullptr) {
      return Refused(found.other != nullptr && found.other->op == GGML_OP_MUL_MAT
                         ? "queries and keys of the cache are turned by a Hadamard matrix"
                         : "the queries have no rotary embedding, or pass an unknown operation after it");
    }
    MNEME_LLAMA_RETURN_IF_ERROR(CheckRotary(*found.rope, layer.rotary));
    // A layer without rotary embedding is captured where the attention reads it, so no factor is missing there.
  } else if (found.rope != nullptr) {
    return Refused("the queries have a rotary embedding of which the adapter does not know");
  } else {
    found.query_factor = 1.0f;
  }
  if (!Close(found.query_factor * found.scale, layer.scale)) {
    return Differs("attention scale", layer.scale, found.query_factor * found.scale);
  }
  if (!Close(found.soft_cap, layer.soft_cap)) return Differs("soft cap", layer.soft_cap, found.soft_cap);

  MNEME_LLAMA_RETURN_IF_ERROR(CheckRows("queries", *found.query, layer.key_dim, layer.q_heads));
  MNEME_LLAMA_RETURN_IF_ERROR(CheckRows("cached keys", *found.keys, layer.key_dim, layer.kv_heads));
  MNEME_LLAMA_RETURN_IF_ERROR(CheckRows("cached values", *found.values, layer.value_dim, layer.kv_heads));
  if (found.query->type != GGML_TYPE_F32 || output.type != GGML_TYPE_F32 || !OnHost(output) ||
      !ggml_is_contiguous(&output) || output.ne[0] != static_cast<int64_t>(layer.q_heads) * layer.value_dim ||
      output.ne[1] != found.query->ne[1]) {
    return Refused("the attention output has an unexpected type or shape");
  }
  if (found.mask->type != GGML_TYPE_F16 || !OnHost(*found.mask) || found.mask->ne[0] != found.keys->ne[1] ||
      found.mask->ne[1] < output.ne[1] || found.mask->ne[2] != 1 || found.mask->ne[3] != 1) {
    return Refused("the attention mask has an unexpected type or shape");
  }
  *inputs = found;
  return Status();
}

Status FindPositions(const ggml_tensor& rope, const int32_t** positions) {
  const ggml_tensor* found = rope.src[1];
  if (found == nullptr || found->type != GGML_TYPE_I32 || found->ne[0] != rope.ne[2] || !OnHost(*found)) {
    return Refused("the positions have an unexpected type or shape, or lie in a device's memory");
  }
  *positions = static_cast<const int32_t*>(found->data);
  return Status();
}

}  // namespace mneme::llama
