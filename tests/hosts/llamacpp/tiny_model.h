// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_HOSTS_LLAMACPP_TINY_MODEL_H_
#define MNEME_TESTS_HOSTS_LLAMACPP_TINY_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "gguf.h"

namespace mneme::llama {

// A model file of any architecture with random f32 weights, the same in every run. It has token ids and no tokenizer.
class TinyModel {
 public:
  static constexpr int64_t kVocabulary = 96, kWidth = 64, kHeads = 4, kKvHeads = 2, kDim = 16, kFeedForward = 80;
  static constexpr int64_t kQueryWidth = kHeads * kDim, kKvWidth = kKvHeads * kDim;

  // With the keys that all architectures have and the token embeddings.
  TinyModel(const std::string& architecture, uint32_t layers);

  // Keys are the architecture's.
  TinyModel& Set(const std::string& key, uint32_t value);
  TinyModel& Set(const std::string& key, float value);
  TinyModel& Set(const std::string& key, const std::string& value);
  TinyModel& SetFlag(const std::string& key, bool value);
  TinyModel& SetList(const std::string& key, const std::vector<int32_t>& values);
  // A tensor of the model, or one of each layer (without "blk.N.").
  TinyModel& Add(const std::string& name, std::vector<int64_t> shape);
  TinyModel& AddToLayers(const std::string& name, const std::vector<int64_t>& shape);

  void Write(const std::string& path) const;

 private:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
  };

  const std::string architecture_;
  const uint32_t layers_;
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf_;
  std::vector<Tensor> tensors_;
};

// Parts that many architectures share.
TinyModel& AddAttention(TinyModel& model);         // attn_norm, attn_q, attn_k, attn_v, attn_output
TinyModel& AddAttentionBiases(TinyModel& model);   // of attn_q, attn_k, attn_v
TinyModel& AddFusedAttention(TinyModel& model);    // attn_norm, attn_qkv, attn_output
TinyModel& AddGatedFeedForward(TinyModel& model);  // ffn_gate, ffn_up, ffn_down
TinyModel& AddPlainFeedForward(TinyModel& model);  // ffn_up, ffn_down and their biases

// An architecture and what llama.cpp's model of it needs.
struct TinyArchitecture {
  std::string name;
  std::function<std::unique_ptr<TinyModel>()> make;

  friend void PrintTo(const TinyArchitecture& architecture, std::ostream* out) { *out << architecture.name; }
};

// Architectures that the adapter serves, each with a part that the others do not have.
std::vector<TinyArchitecture> ServedArchitectures();

struct RefusedArchitecture {
  std::string name;
  std::function<std::unique_ptr<TinyModel>()> make;
  std::string layer;   // what the message says of where
  std::string reason;  // and why

  friend void PrintTo(const RefusedArchitecture& architecture, std::ostream* out) { *out << architecture.name; }
};
std::vector<RefusedArchitecture> RefusedArchitectures();

}  // namespace mneme::llama

#endif  // MNEME_TESTS_HOSTS_LLAMACPP_TINY_MODEL_H_
