// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "tests/hosts/llamacpp/tiny_model.h"

namespace mneme::llama {
namespace {

using ModelPtr = std::unique_ptr<TinyModel>;

constexpr int64_t kWidth = TinyModel::kWidth;
constexpr int64_t kDim = TinyModel::kDim;

ModelPtr New(const std::string& architecture, uint32_t layers) {
  auto model = std::make_unique<TinyModel>(architecture, layers);
  model->Add("output_norm.weight", {kWidth});
  return model;
}

// As llama.cpp's llama and its many likes.
ModelPtr Plain(const std::string& architecture, uint32_t layers = 2) {
  ModelPtr model = New(architecture, layers);
  AddGatedFeedForward(AddAttention(*model)).AddToLayers("ffn_norm.weight", {kWidth});
  return model;
}

ModelPtr Llama() {
  return Plain("llama");
}

ModelPtr Llama3() {
  ModelPtr model = Plain("llama");
  model->Add("rope_freqs.weight", {kDim / 2});
  return model;
}

// Positions of three times the trained context.
ModelPtr LlamaLinear() {
  ModelPtr model = Plain("llama");
  model->Set("rope.scaling.type", std::string("linear")).Set("rope.scaling.factor", 3.0f);
  return model;
}

// One KV head, whose rows by heads have the shape of flat ones.
ModelPtr LlamaOneHead() {
  ModelPtr model = New("llama", 2);
  model->Set("attention.head_count_kv", 1u);
  AddGatedFeedForward(*model)
      .AddToLayers("attn_norm.weight", {kWidth})
      .AddToLayers("attn_q.weight", {kWidth, kWidth})
      .AddToLayers("attn_k.weight", {kWidth, kDim})
      .AddToLayers("attn_v.weight", {kWidth, kDim})
      .AddToLayers("attn_output.weight", {kWidth, kWidth})
      .AddToLayers("ffn_norm.weight", {kWidth});
  return model;
}

ModelPtr Qwen2() {
  ModelPtr model = Plain("qwen2");
  AddAttentionBiases(*model);
  return model;
}

ModelPtr Qwen2Yarn() {
  ModelPtr model = Qwen2();
  model->Set("rope.scaling.type", std::string("yarn"))
      .Set("rope.scaling.factor", 4.0f)
      .Set("rope.scaling.original_context_length", 64u);
  return model;
}

ModelPtr Qwen3() {
  ModelPtr model = Plain("qwen3");
  model->AddToLayers("attn_q_norm.weight", {kDim}).AddToLayers("attn_k_norm.weight", {kDim});
  return model;
}

ModelPtr Gemma() {
  ModelPtr model = Plain("gemma");
  model->Set("attention.key_length", static_cast<uint32_t>(kDim));
  model->Set("attention.value_length", static_cast<uint32_t>(kDim));
  return model;
}

// A soft cap near the scores' size; every second layer has a window.
ModelPtr Gemma2() {
  ModelPtr model = Plain("gemma2", 4);
  model->Set("attn_logit_softcapping", 2.0f)
      .Set("final_logit_softcapping", 30.0f)
      .Set("attention.sliding_window", 24u)
      .AddToLayers("post_attention_norm.weight", {kWidth})
      .AddToLayers("post_ffw_norm.weight", {kWidth});
  return model;
}

// Layers 5 and 11 are global and have a rotary base of their own.
ModelPtr Gemma3() {
  ModelPtr model = Plain("gemma3", 12);
  model->Set("attention.sliding_window", 24u)
      .Set("rope.freq_base", 1e6f)
      .Set("rope.freq_base_swa", 1e4f)
      .AddToLayers("attn_q_norm.weight", {kDim})
      .AddToLayers("attn_k_norm.weight", {kDim})
      .AddToLayers("post_attention_norm.weight", {kWidth})
      .AddToLayers("post_ffw_norm.weight", {kWidth});
  return model;
}

ModelPtr Phi2() {
  ModelPtr model = New("phi2", 2);
  model->Set("rope.dimension_count", 8u)
      .Add("output_norm.bias", {kWidth})
      .Add("output.weight", {kWidth, TinyModel::kVocabulary})
      .Add("output.bias", {TinyModel::kVocabulary});
  AddAttentionBiases(AddPlainFeedForward(AddAttention(*model)))
      .AddToLayers("attn_norm.bias", {kWidth})
      .AddToLayers("attn_output.bias", {kWidth});
  return model;
}

ModelPtr Phi3() {
  ModelPtr model = New("phi3", 2);
  AddFusedAttention(*model)
      .AddToLayers("ffn_norm.weight", {kWidth})
      .AddToLayers("ffn_up.weight", {kWidth, 2 * TinyModel::kFeedForward})
      .AddToLayers("ffn_down.weight", {TinyModel::kFeedForward, kWidth});
  return model;
}

// LongRoPE: two sets of factors, of which a short context uses the second, and a factor of rotated rows.
ModelPtr Phi3LongRope() {
  ModelPtr model = Phi3();
  model->Set("rope.scaling.attn_factor", 1.19f)
      .Set("rope.scaling.original_context_length", 1024u)
      .Add("rope_factors_long.weight", {kDim / 2})
      .Add("rope_factors_short.weight", {kDim / 2});
  return model;
}

// Every fourth layer has no rotary embedding.
ModelPtr SmolLm3() {
  return Plain("smollm3", 5);
}

ModelPtr Granite() {
  ModelPtr model = Plain("granite");
  model->Set("attention.scale", 0.4f).Set("logit_scale", 4.0f).Set("residual_scale", 0.5f).Set("embedding_scale", 2.0f);
  return model;
}

// Clamped queries, keys and values, and norms without weights.
ModelPtr Olmo() {
  auto model = std::make_unique<TinyModel>("olmo", 2);
  model->Set("attention.clamp_kqv", 1.0f);
  AddGatedFeedForward(*model)
      .AddToLayers("attn_q.weight", {kWidth, kWidth})
      .AddToLayers("attn_k.weight", {kWidth, TinyModel::kKvWidth})
      .AddToLayers("attn_v.weight", {kWidth, TinyModel::kKvWidth})
      .AddToLayers("attn_output.weight", {kWidth, kWidth});
  return model;
}

// Norms over all heads at once.
ModelPtr Olmo2() {
  ModelPtr model = New("olmo2", 2);
  model->Add("output.weight", {kWidth, TinyModel::kVocabulary});
  AddGatedFeedForward(*model)
      .AddToLayers("attn_q.weight", {kWidth, kWidth})
      .AddToLayers("attn_k.weight", {kWidth, TinyModel::kKvWidth})
      .AddToLayers("attn_v.weight", {kWidth, TinyModel::kKvWidth})
      .AddToLayers("attn_output.weight", {kWidth, kWidth})
      .AddToLayers("attn_q_norm.weight", {kWidth})
      .AddToLayers("attn_k_norm.weight", {TinyModel::kKvWidth})
      .AddToLayers("post_attention_norm.weight", {kWidth})
      .AddToLayers("post_ffw_norm.weight", {kWidth});
  return model;
}

ModelPtr StarCoder2() {
  ModelPtr model = New("starcoder2", 2);
  model->Add("output_norm.bias", {kWidth});
  AddAttentionBiases(AddPlainFeedForward(AddAttention(*model)))
      .AddToLayers("attn_norm.bias", {kWidth})
      .AddToLayers("attn_output.bias", {kWidth})
      .AddToLayers("ffn_norm.weight", {kWidth})
      .AddToLayers("ffn_norm.bias", {kWidth});
  return model;
}

// Queries, keys and values in one product; half of the dims turn.
ModelPtr GptNeoX() {
  ModelPtr model = New("gptneox", 2);
  model->Set("rope.dimension_count", 8u)
      .SetFlag("use_parallel_residual", true)
      .Add("output_norm.bias", {kWidth})
      .Add("output.weight", {kWidth, TinyModel::kVocabulary});
  AddPlainFeedForward(AddFusedAttention(*model))
      .AddToLayers("attn_qkv.bias", {TinyModel::kQueryWidth + 2 * TinyModel::kKvWidth})
      .AddToLayers("attn_norm.bias", {kWidth})
      .AddToLayers("attn_output.bias", {kWidth})
      .AddToLayers("ffn_norm.weight", {kWidth})
      .AddToLayers("ffn_norm.bias", {kWidth});
  return model;
}

// Global layers have no rotary embedding, the others have windows.
ModelPtr Cohere2() {
  ModelPtr model = New("cohere2", 4);
  model->Set("attention.sliding_window", 24u).Set("logit_scale", 0.5f);
  AddGatedFeedForward(AddAttention(*model));
  return model;
}

// Latent attention with absorbed matrices: the values are a part of the keys.
ModelPtr DeepSeek2() {
  ModelPtr model = New("deepseek2", 2);
  model->Set("attention.head_count_kv", 1u)
      .Set("attention.q_lora_rank", 24u)
      .Set("attention.kv_lora_rank", 32u)
      .Set("attention.key_length", 40u)
      .Set("attention.value_length", 32u)
      .Set("attention.key_length_mla", 24u)
      .Set("attention.value_length_mla", 16u)
      .Set("rope.dimension_count", 8u)
      .Set("leading_dense_block_count", 2u)
      .Set("expert_feed_forward_length", 16u)
      .Set("expert_shared_count", 1u)
      .AddToLayers("attn_norm.weight", {kWidth})
      .AddToLayers("attn_q_a_norm.weight", {24})
      .AddToLayers("attn_q_a.weight", {kWidth, 24})
      .AddToLayers("attn_q_b.weight", {24, 4 * 24})
      .AddToLayers("attn_kv_a_norm.weight", {32})
      .AddToLayers("attn_kv_a_mqa.weight", {kWidth, 40})
      .AddToLayers("attn_k_b.weight", {16, 32, 4})
      .AddToLayers("attn_v_b.weight", {32, 16, 4})
      .AddToLayers("attn_output.weight", {64, kWidth})
      .AddToLayers("ffn_norm.weight", {kWidth});
  AddGatedFeedForward(*model);
  return model;
}

// Latent attention without absorbed matrices: a part of each key is turned and put beside the rest.
ModelPtr MiniCpm3() {
  ModelPtr model = New("minicpm3", 2);
  model->Set("attention.head_count_kv", 4u)
      .Set("attention.q_lora_rank", 24u)
      .Set("attention.kv_lora_rank", 32u)
      .Set("attention.key_length", 24u)
      .Set("attention.value_length", 16u)
      .Set("rope.dimension_count", 8u)
      .AddToLayers("attn_norm.weight", {kWidth})
      .AddToLayers("attn_q_a_norm.weight", {24})
      .AddToLayers("attn_q_a.weight", {kWidth, 24})
      .AddToLayers("attn_q_b.weight", {24, 4 * 24})
      .AddToLayers("attn_kv_a_norm.weight", {32})
      .AddToLayers("attn_kv_a_mqa.weight", {kWidth, 40})
      .AddToLayers("attn_kv_b.weight", {32, 4 * 32})
      .AddToLayers("attn_output.weight", {64, kWidth})
      .AddToLayers("ffn_norm.weight", {kWidth});
  AddGatedFeedForward(*model);
  return model;
}

// Sinks as weights; every second layer has a window.
ModelPtr GptOss() {
  ModelPtr model = New("gpt-oss", 2);
  constexpr int64_t kExperts = 2;
  model->Set("attention.sliding_window", 24u)
      .Set("expert_count", 2u)
      .Set("expert_used_count", 1u)
      .Set("expert_feed_forward_length", 16u)
      .Add("output.weight", {kWidth, TinyModel::kVocabulary})
      .AddToLayers("post_attention_norm.weight", {kWidth})
      .AddToLayers("attn_sinks.weight", {TinyModel::kHeads})
      .AddToLayers("attn_output.bias", {kWidth})
      .AddToLayers("ffn_gate_inp.weight", {kWidth, kExperts})
      .AddToLayers("ffn_gate_inp.bias", {kExperts});
  for (const char* part : {"ffn_gate_exps", "ffn_up_exps"}) {
    model->AddToLayers(std::string(part) + ".weight", {kWidth, 16, kExperts})
        .AddToLayers(std::string(part) + ".bias", {16, kExperts});
  }
  model->AddToLayers("ffn_down_exps.weight", {16, kWidth, kExperts})
      .AddToLayers("ffn_down_exps.bias", {kWidth, kExperts});
  AddAttention(*model);
  return model;
}

ModelPtr Mamba() {
  ModelPtr model = New("mamba", 2);
  model->Set("ssm.conv_kernel", 4u)
      .Set("ssm.inner_size", 128u)
      .Set("ssm.state_size", 16u)
      .Set("ssm.time_step_rank", 4u)
      .AddToLayers("attn_norm.weight", {kWidth})
      .AddToLayers("ssm_in.weight", {kWidth, 256})
      .AddToLayers("ssm_conv1d.weight", {4, 128})
      .AddToLayers("ssm_conv1d.bias", {128})
      .AddToLayers("ssm_x.weight", {128, 36})
      .AddToLayers("ssm_dt.weight", {4, 128})
      .AddToLayers("ssm_dt.bias", {128})
      .AddToLayers("ssm_a", {16, 128})
      .AddToLayers("ssm_d", {128})
      .AddToLayers("ssm_out.weight", {128, kWidth});
  return model;
}

// Scores are biased by distance.
ModelPtr Mpt() {
  ModelPtr model = New("mpt", 2);
  model->Set("attention.max_alibi_bias", 8.0f)
      .AddToLayers("ffn_norm.weight", {kWidth})
      .AddToLayers("ffn_up.weight", {kWidth, TinyModel::kFeedForward})
      .AddToLayers("ffn_down.weight", {TinyModel::kFeedForward, kWidth});
  AddFusedAttention(*model);
  return model;
}

// Positions are a table of the trained context.
ModelPtr Gpt2() {
  ModelPtr model = New("gpt2", 2);
  model->Add("position_embd.weight", {kWidth, 4096}).Add("output_norm.bias", {kWidth});
  AddPlainFeedForward(AddFusedAttention(*model))
      .AddToLayers("attn_qkv.bias", {TinyModel::kQueryWidth + 2 * TinyModel::kKvWidth})
      .AddToLayers("attn_norm.bias", {kWidth})
      .AddToLayers("attn_output.bias", {kWidth})
      .AddToLayers("ffn_norm.weight", {kWidth})
      .AddToLayers("ffn_norm.bias", {kWidth});
  return model;
}

// Positions of three parts.
ModelPtr Qwen2Vl() {
  ModelPtr model = Plain("qwen2vl");
  model->SetList("rope.dimension_sections", {2, 3, 3, 0});
  AddAttentionBiases(*model);
  return model;
}

}  // namespace

std::vector<TinyArchitecture> ServedArchitectures() {
  return {{"llama", Llama},
          {"llama, rotary factors", Llama3},
          {"llama, linear scaling", LlamaLinear},
          {"llama, one KV head", LlamaOneHead},
          {"qwen2", Qwen2},
          {"qwen2, YaRN", Qwen2Yarn},
          {"qwen3", Qwen3},
          {"gemma", Gemma},
          {"gemma2", Gemma2},
          {"gemma3", Gemma3},
          {"phi2", Phi2},
          {"phi3", Phi3},
          {"phi3, LongRoPE", Phi3LongRope},
          {"smollm3", SmolLm3},
          {"granite", Granite},
          {"olmo", Olmo},
          {"olmo2", Olmo2},
          {"starcoder2", StarCoder2},
          {"gptneox", GptNeoX},
          {"cohere2", Cohere2}};
}

std::vector<RefusedArchitecture> RefusedArchitectures() {
  return {{"deepseek2", DeepSeek2, "layer 0: ", "latent attention"},
          {"minicpm3", MiniCpm3, "layer 0: ", "after rotary embedding"},
          {"gpt-oss", GptOss, "layer 1: ", "attention sinks as weights"},
          {"mamba", Mamba, "layer 0: ", "recurrent state"},
          {"mpt", Mpt, "layer 0: ", "ALiBi"},
          {"gpt2", Gpt2, "", "a table of its trained context"},
          {"qwen2vl", Qwen2Vl, "layer 0: ", "positions of several parts"}};
}

}  // namespace mneme::llama
