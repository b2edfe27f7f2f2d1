// SPDX-License-Identifier: Apache-2.0
#include "tests/hosts/llamacpp/tiny_model.h"

#include <cmath>
#include <random>

#include "ggml.h"

namespace mneme::llama {
namespace {

bool Contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// Weights that keep activations near 1 and make attention choose.
void Fill(const std::string& name, std::mt19937& random, ggml_tensor* tensor) {
  std::normal_distribution<float> normal;
  auto* values = static_cast<float*>(tensor->data);
  const bool chooses = Contains(name, "attn_q.weight") || Contains(name, "attn_k.weight");
  const float spread = (chooses ? 1.3f : 1.0f) / std::sqrt(static_cast<float>(tensor->ne[0]));
  for (int64_t i = 0; i < ggml_nelements(tensor); ++i) {
    const float x = normal(random);
    if (Contains(name, "rope_f")) {
      values[i] = 1.0f + 3.0f * std::fabs(x);
    } else if (Contains(name, "norm.weight")) {
      values[i] = 1.0f + 0.2f * x;
    } else {
      values[i] = tensor->ne[1] == 1 ? 0.2f * x : spread * x;
    }
  }
}

}  // namespace

TinyModel::TinyModel(const std::string& architecture, uint32_t layers)
    : architecture_(architecture), layers_(layers), gguf_(gguf_init_empty(), &gguf_free) {
  gguf_set_val_str(gguf_.get(), "general.architecture", architecture.c_str());
  gguf_set_val_str(gguf_.get(), "general.name", ("tiny " + architecture).c_str());
  gguf_set_val_str(gguf_.get(), "tokenizer.ggml.model", "none");
  Set("vocab_size", static_cast<uint32_t>(kVocabulary)).Set("context_length", 4096u);
  Set("embedding_length", static_cast<uint32_t>(kWidth)).Set("block_count", layers);
  Set("feed_forward_length", static_cast<uint32_t>(kFeedForward));
  Set("attention.head_count", static_cast<uint32_t>(kHeads));
  Set("attention.head_count_kv", static_cast<uint32_t>(kKvHeads));
  Set("attention.layer_norm_rms_epsilon", 1e-6f).Set("attention.layer_norm_epsilon", 1e-5f);
  Set("rope.freq_base", 10000.0f);
  Add("token_embd.weight", {kWidth, kVocabulary});
}

TinyModel& TinyModel::Set(const std::string& key, uint32_t value) {
  gguf_set_val_u32(gguf_.get(), (architecture_ + "." + key).c_str(), value);
  return *this;
}
TinyModel& TinyModel::Set(const std::string& key, float value) {
  gguf_set_val_f32(gguf_.get(), (architecture_ + "." + key).c_str(), value);
  return *this;
}
TinyModel& TinyModel::Set(const std::string& key, const std::string& value) {
  gguf_set_val_str(gguf_.get(), (architecture_ + "." + key).c_str(), value.c_str());
  return *this;
}
TinyModel& TinyModel::SetFlag(const std::string& key, bool value) {
  gguf_set_val_bool(gguf_.get(), (architecture_ + "." + key).c_str(), value);
  return *this;
}
TinyModel& TinyModel::SetList(const std::string& key, const std::vector<int32_t>& values) {
  gguf_set_arr_data(gguf_.get(), (architecture_ + "." + key).c_str(), GGUF_TYPE_INT32, values.data(), values.size());
  return *this;
}
TinyModel& TinyModel::Add(const std::string& name, std::vector<int64_t> shape) {
  tensors_.push_back({name, std::move(shape)});
  return *this;
}
TinyModel& TinyModel::AddToLayers(const std::string& name, const std::vector<int64_t>& shape) {
  for (uint32_t i = 0; i < layers_; ++i) Add("blk." + std::to_string(i) + "." + name, shape);
  return *this;
}

void TinyModel::Write(const std::string& path) const {
  const std::unique_ptr<ggml_context, decltype(&ggml_free)> memory(
      ggml_init({size_t{16} << 20, nullptr, /*no_alloc=*/false}), &ggml_free);
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> file(gguf_init_empty(), &gguf_free);
  gguf_set_kv(file.get(), gguf_.get());
  std::mt19937 random(7);
  for (const Tensor& tensor : tensors_) {
    ggml_tensor* made =
        ggml_new_tensor(memory.get(), GGML_TYPE_F32, static_cast<int>(tensor.shape.size()), tensor.shape.data());
    ggml_set_name(made, tensor.name.c_str());
    Fill(tensor.name, random, made);
    gguf_add_tensor(file.get(), made);
  }
  gguf_write_to_file(file.get(), path.c_str(), /*only_meta=*/false);
}

TinyModel& AddAttention(TinyModel& model) {
  return model.AddToLayers("attn_norm.weight", {TinyModel::kWidth})
      .AddToLayers("attn_q.weight", {TinyModel::kWidth, TinyModel::kQueryWidth})
      .AddToLayers("attn_k.weight", {TinyModel::kWidth, TinyModel::kKvWidth})
      .AddToLayers("attn_v.weight", {TinyModel::kWidth, TinyModel::kKvWidth})
      .AddToLayers("attn_output.weight", {TinyModel::kQueryWidth, TinyModel::kWidth});
}

TinyModel& AddAttentionBiases(TinyModel& model) {
  return model.AddToLayers("attn_q.bias", {TinyModel::kQueryWidth})
      .AddToLayers("attn_k.bias", {TinyModel::kKvWidth})
      .AddToLayers("attn_v.bias", {TinyModel::kKvWidth});
}

TinyModel& AddFusedAttention(TinyModel& model) {
  return model.AddToLayers("attn_norm.weight", {TinyModel::kWidth})
      .AddToLayers("attn_qkv.weight", {TinyModel::kWidth, TinyModel::kQueryWidth + 2 * TinyModel::kKvWidth})
      .AddToLayers("attn_output.weight", {TinyModel::kQueryWidth, TinyModel::kWidth});
}

TinyModel& AddGatedFeedForward(TinyModel& model) {
  return model.AddToLayers("ffn_gate.weight", {TinyModel::kWidth, TinyModel::kFeedForward})
      .AddToLayers("ffn_up.weight", {TinyModel::kWidth, TinyModel::kFeedForward})
      .AddToLayers("ffn_down.weight", {TinyModel::kFeedForward, TinyModel::kWidth});
}

TinyModel& AddPlainFeedForward(TinyModel& model) {
  return model.AddToLayers("ffn_up.weight", {TinyModel::kWidth, TinyModel::kFeedForward})
      .AddToLayers("ffn_up.bias", {TinyModel::kFeedForward})
      .AddToLayers("ffn_down.weight", {TinyModel::kFeedForward, TinyModel::kWidth})
      .AddToLayers("ffn_down.bias", {TinyModel::kWidth});
}

}  // namespace mneme::llama
