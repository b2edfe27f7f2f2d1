// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/graph_nodes.h"

#include <cmath>
#include <cstring>
#include <string>
#include <string_view>

#include "ggml-backend.h"

namespace mneme::llama {
namespace {

// "Name-12" gives 12 if `text` is exactly `name`, a dash and digits; -1 otherwise.
int32_t LayerOf(std::string_view text, std::string_view name) {
  if (text.size() <= name.size() + 1 || text.size() > name.size() + 6 || !text.starts_with(name) ||
      text[name.size()] != '-') {
    return -1;
  }
  int32_t layer = 0;
  for (const char digit : text.substr(name.size() + 1)) {
    if (digit < '0' || digit > '9') return -1;
    layer = layer * 10 + (digit - '0');
  }
  return layer;
}

float FloatParameter(const ggml_tensor& node, int index) {
  float value;
  std::memcpy(&value, &node.op_params[index], sizeof(value));
  return value;
}

bool Close(float a, float b) {
  return std::fabs(a - b) <= 1e-5f * std::fmax(std::fabs(a), std::fabs(b));
}

Status Differs(const char* what, double model, double context) {
  return Refused(std::string("the context computes with ") + what + " " + std::to_string(context) +
                 ", the model's metadata says " + std::to_string(model));
}

// The rotary node's parameters, as ggml_rope_ext lays them down: 1 dims, 2 mode, 5 base, 6 scale, 7 extrapolation mix,
// 8 magnitude.
Status CheckRotary(const ggml_tensor& rope, const RotaryShape& expected) {
  if (rope.op_params[1] != expected.dims) return Differs("rotary dims", expected.dims, rope.op_params[1]);
  const int32_t mode = expected.halves ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL;
  if (rope.op_params[2] != mode) return Differs("rotary mode", mode, rope.op_params[2]);
  if (!Close(FloatParameter(rope, 5), expected.base)) {
    return Differs("rotary base", expected.base, FloatParameter(rope, 5));
  }
  if (!Close(FloatParameter(rope, 6), expected.scale)) {
    return Differs("rotary scale", expected.scale, FloatParameter(rope, 6));
  }
  if (FloatParameter(rope, 7) != 0.0f) return Differs("YaRN's mix", 0.0, FloatParameter(rope, 7));
  if (!Close(FloatParameter(rope, 8), 1.0f)) return Differs("rotary magnitude", 1.0, FloatParameter(rope, 8));
  if ((rope.src[2] != nullptr) != !expected.divisors.empty()) {
    return Refused(rope.src[2] != nullptr ? "the context uses rotary factors of which the adapter does not know: give "
                                            "model_path"
                                          : "the model has rotary factors that the context does not use");
  }
  return Status();
}

// The last stage of queries, keys and values is a reshape of their own product, or a view of a product that all share.
bool IsByHeads(const ggml_tensor& node) {
  return node.op == GGML_OP_RESHAPE || node.op == GGML_OP_VIEW;
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

NodeName ParseNodeName(const ggml_tensor& node, bool normed) {
  // Asked for every node of every graph, so most must be told by a letter.
  const char initial = node.name[0];
  if (initial != 'k' && initial != 'K' && initial != 'Q' && initial != 'V') return {};
  const std::string_view name(node.name);
  if (int32_t layer = LayerOf(name, "kqv_out"); layer >= 0) return {NodeKind::kAttentionOut, layer};
  if (int32_t layer = LayerOf(name, "Vcur"); layer >= 0) {
    return {IsByHeads(node) ? NodeKind::kValue : NodeKind::kNone, layer};
  }
  if (int32_t layer = LayerOf(name, normed ? "Qcur_normed" : "Qcur"); layer >= 0) {
    return {normed || IsByHeads(node) ? NodeKind::kQuery : NodeKind::kNone, layer};
  }
  if (int32_t layer = LayerOf(name, "Kcur"); layer >= 0) {
    if (node.op == GGML_OP_ROPE) return {NodeKind::kRotatedKey, layer};
    return {!normed && IsByHeads(node) ? NodeKind::kKey : NodeKind::kNone, layer};
  }
  if (int32_t layer = LayerOf(name, "Kcur_normed"); normed && layer >= 0) return {NodeKind::kKey, layer};
  return {};
}

bool HasHeads(const ggml_tensor& node, int32_t dim, int32_t heads) {
  return node.type == GGML_TYPE_F32 && node.ne[0] == dim && node.ne[1] == heads && node.ne[3] == 1 &&
         node.nb[0] == sizeof(float);
}

Status FindAttentionInputs(const ggml_tensor& output, const LayerShape& layer, AttentionInputs* inputs) {
  const ggml_tensor* attention = &output;
  while (attention != nullptr && attention->op == GGML_OP_RESHAPE) attention = attention->src[0];
  if (attention == nullptr || attention->op != GGML_OP_FLASH_ATTN_EXT) {
    return Refused("the attention output does not come from a flash attention node; is flash attention off?");
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
  if (FloatParameter(*attention, 2) != 0.0f) return Refused("attention scores are capped, which is not served");

  const ggml_tensor* rope = found.query;
  while (rope != nullptr && rope->op != GGML_OP_ROPE) {
    if (rope->op == GGML_OP_SCALE && FloatParameter(*rope, 1) == 0.0f) {
      found.query_factor *= FloatParameter(*rope, 0);
    } else if (rope->op == GGML_OP_MUL_MAT) {
      return Refused("queries and keys of the cache are turned by a Hadamard matrix");
    } else if (rope->op != GGML_OP_PERMUTE && rope->op != GGML_OP_VIEW && rope->op != GGML_OP_RESHAPE) {
      return Refused(std::string("the queries pass an unknown operation after rotary embedding: ") +
                     ggml_op_name(rope->op));
    }
    rope = rope->src[0];
  }
  if (rope == nullptr) return Refused("the queries have no rotary embedding");
  MNEME_LLAMA_RETURN_IF_ERROR(CheckRotary(*rope, layer.rotary));
  if (!Close(found.query_factor * found.scale, layer.scale)) {
    return Differs("attention scale", layer.scale, found.query_factor * found.scale);
  }

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

Status FindPositions(const ggml_tensor& rotated_key, const int32_t** positions) {
  const ggml_tensor* found = rotated_key.src[1];
  if (found == nullptr || found->type != GGML_TYPE_I32 || found->ne[0] != rotated_key.ne[2] || !OnHost(*found)) {
    return Refused("the positions have an unexpected type or shape, or lie in a device's memory");
  }
  *positions = static_cast<const int32_t*>(found->data);
  return Status();
}

}  // namespace mneme::llama
