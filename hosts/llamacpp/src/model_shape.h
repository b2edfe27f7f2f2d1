// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_MODEL_SHAPE_H_
#define MNEME_HOSTS_LLAMACPP_SRC_MODEL_SHAPE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"
#include "hosts/llamacpp/src/status.h"

struct llama_model;

namespace mneme::llama {

// Rotary embedding of one layer, as ggml_rope_ext is called for it.
struct RotaryShape {
  bool halves = false;  // pairs (i, i + dims / 2), ggml's NEOX; otherwise (2i, 2i + 1)
  int32_t dims = 0;     // 0: the layer has no rotary embedding
  float base = 10000.0f;
  float scale = 1.0f;                // linear scaling: positions are multiplied by it
  std::vector<float> divisors = {};  // [dims / 2] of the frequencies (Llama 3, LongRoPE); empty: all 1
  float factor = 1.0f;               // of rotated rows
  float yarn_mix = 0.0f;             // YaRN's, with the three below; 0: no YaRN
  float yarn_beta_fast = 32.0f;
  float yarn_beta_slow = 1.0f;
  int32_t yarn_context = 0;  // tokens that the model was trained on before
};

// A node of llama.cpp's graph that is found again in every graph of the model. One name may stand for several stages of
// the same rows, so the operation belongs to it.
struct NodeMark {
  std::string name;
  ggml_op op = GGML_OP_NONE;

  bool operator==(const NodeMark& other) const = default;
};

// The nodes of a layer's graph that the adapter stops at.
struct LayerNodes {
  NodeMark query;        // unrotated [key_dim, q_heads, tokens]
  NodeMark key;          // unrotated [key_dim, kv_heads, tokens]
  NodeMark rotated_key;  // after rotary embedding; `key` where there is none
  NodeMark value;        // [value_dim, kv_heads, tokens]
  NodeMark output;       // attention output [value_dim * q_heads, tokens], before the output projection
};

struct LayerShape {
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
  float scale = 1.0f;  // of the scores
  int32_t window = 0;  // 0: global attention
  RotaryShape rotary = {};
  float soft_cap = 0.0f;  // logit = soft_cap * tanh(score / soft_cap); 0: none
  LayerNodes nodes = {};
  std::string refusal = {};  // why the layer can have no memory; empty: it can
};

// What the adapter must know of a model.
struct ModelShape {
  std::string name;
  std::string architecture;
  std::vector<LayerShape> layers;
};

// Has llama.cpp build the model's graph, of which nothing is computed, and reads each layer's attention from it.
// Needs a small context for a moment.
// Errors: Unimplemented, with the reason, for a model of which no layer can have a memory: one that is recurrent, whose
// graph is not causal, or whose positions have several parts. Single layers are refused by LayerShape::refusal.
Status ReadModelShape(const llama_model* model, ModelShape* shape);

// Of pair i of a layer's rotary embedding: what it turns by for each position.
std::vector<float> InverseFrequencies(const RotaryShape& rotary);
// What rotated rows are multiplied by.
float RotaryMagnitude(const RotaryShape& rotary);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_SRC_MODEL_SHAPE_H_
