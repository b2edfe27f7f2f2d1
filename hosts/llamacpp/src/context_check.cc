// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "hosts/llamacpp/src/adapter.h"

namespace mneme::llama {
namespace {

Status CheckCacheType(const char* what, ggml_type type) {
  if (type == GGML_TYPE_F16 || type == GGML_TYPE_F32 || type == GGML_TYPE_BF16) return Status();
  return Refused(std::string(what) + " is " + ggml_type_name(type) +
                 ": llama.cpp turns the rows of quantised caches by a Hadamard matrix, which memory rows do not share; "
                 "use f16, bf16 or f32");
}

// Rotary settings of global layers; those of no layer if none has any.
RotaryShape GlobalRotary(const ModelShape& shape) {
  for (const LayerShape& layer : shape.layers) {
    if (layer.window == 0 && layer.rotary.dims > 0) return layer.rotary;
  }
  return {};
}

}  // namespace

Status CheckContextParams(const llama_context_params& params, const ModelShape& shape, int32_t window) {
  if (params.cb_eval != nullptr) {
    return Refused("cb_eval is set already; llama.cpp has room for one callback, and the adapter is one");
  }
  MNEME_LLAMA_RETURN_IF_ERROR(CheckCacheType("type_k", params.type_k));
  MNEME_LLAMA_RETURN_IF_ERROR(CheckCacheType("type_v", params.type_v));
  if (params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
    return Refused("flash_attn_type is disabled; the adapter reads the window through the flash attention node");
  }
  if (params.n_seq_max > 1 && !params.kv_unified) {
    return Refused("n_seq_max is " + std::to_string(params.n_seq_max) +
                   " without kv_unified; llama.cpp then reorders batches, set kv_unified");
  }
  if (params.attention_type == LLAMA_ATTENTION_TYPE_NON_CAUSAL) {
    return Refused("attention_type is non-causal; a memory is a past");
  }
  if (params.embeddings && params.pooling_type > LLAMA_POOLING_TYPE_NONE) {
    return Refused("pooling_type asks for pooled embeddings; only generation is served");
  }
  const RotaryShape rotary = GlobalRotary(shape);
  if (params.rope_freq_base != 0.0f && params.rope_freq_base != rotary.base) {
    return Refused("rope_freq_base is " + std::to_string(params.rope_freq_base) + ", the model's is " +
                   std::to_string(rotary.base));
  }
  if (params.rope_freq_scale != 0.0f && params.rope_freq_scale != rotary.scale) {
    return Refused("rope_freq_scale is " + std::to_string(params.rope_freq_scale) + ", the model's is " +
                   std::to_string(rotary.scale));
  }
  if ((params.rope_scaling_type == LLAMA_ROPE_SCALING_TYPE_YARN && rotary.yarn_mix == 0.0f) ||
      params.rope_scaling_type == LLAMA_ROPE_SCALING_TYPE_LONGROPE) {
    return Refused("rope_scaling_type asks for YaRN or LongRoPE; leave it to the model");
  }
  if (params.n_ctx != 0 && params.n_ctx < 2 * static_cast<uint32_t>(window)) {
    return Refused("n_ctx is " + std::to_string(params.n_ctx) + ", which does not hold twice the window of " +
                   std::to_string(window));
  }
  return Status();
}

}  // namespace mneme::llama
