// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_MODEL_SHAPE_H_
#define MNEME_HOSTS_LLAMACPP_SRC_MODEL_SHAPE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "hosts/llamacpp/src/status.h"

struct llama_model;

namespace mneme::llama {

// Rotary embedding of one layer, as ggml_rope_ext is called for it.
struct RotaryShape {
  bool halves = false;  // pairs (i, i + dims / 2), ggml's NEOX; otherwise (2i, 2i + 1)
  int32_t dims = 0;
  float base = 10000.0f;
  float scale = 1.0f;           // linear scaling: positions are multiplied by it
  std::vector<float> divisors;  // [dims / 2] of the frequencies (Llama 3); empty: all 1
};

struct LayerShape {
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
  float scale = 1.0f;  // of the scores
  int32_t window = 0;  // 0: global attention
  RotaryShape rotary;
};

// What the adapter must know of a model, read from its metadata.
struct ModelShape {
  std::string name;
  std::string architecture;
  bool normed = false;  // queries and keys are normalised before they are rotated: the nodes are called *_normed
  std::vector<LayerShape> layers;
};

// Value of a GGUF key as a string; nullopt if the model has no such key.
using MetadataLookup = std::function<std::optional<std::string>(const std::string& key)>;

// `rope_divisors`: the model's tensor rope_freqs.weight, empty if it has none.
// MNEME_STATUS_UNIMPLEMENTED, with the reason, for a model that the adapter cannot serve correctly: an architecture
// that it does not know, attention sinks as weights, latent attention, other rotary scalings.
Status ReadModelShape(const MetadataLookup& lookup, const std::vector<float>& rope_divisors, ModelShape* shape);
Status ReadModelShape(const llama_model* model, const std::vector<float>& rope_divisors, ModelShape* shape);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_MODEL_SHAPE_H_
