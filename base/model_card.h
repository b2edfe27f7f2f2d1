// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_MODEL_CARD_H_
#define MNEME_BASE_MODEL_CARD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace mneme {

// Which two elements of a row rotary embedding rotates together.
enum class RotaryLayout : uint8_t {
  kNone = 0,         // the layer has no rotary embedding
  kInterleaved = 1,  // (2i, 2i + 1): GGUF files of the Llama family
  kHalves = 2,       // (i, i + dims / 2): Qwen, Gemma, Hugging Face's Llama
};

// Rotary embedding of one layer: pair i of a row at position p is rotated by the angle p * inverse_frequencies[i] and
// multiplied by `magnitude` (YaRN's attention factor; 1 otherwise). The first 2 * inverse_frequencies.size() elements
// of a row are rotated; the rest stay as they are.
struct Rotary {
  RotaryLayout layout = RotaryLayout::kNone;
  std::vector<float> inverse_frequencies;
  float magnitude = 1.0f;

  bool operator==(const Rotary&) const = default;
};

// One layer that has a memory. `layer` is the number that the host gives it.
struct LayerCard {
  int32_t layer = 0;
  int32_t query_heads = 0;
  int32_t kv_heads = 0;
  int32_t key_dim = 0;
  int32_t value_dim = 0;
  float scale = 1.0f;     // score = scale * q·k
  float soft_cap = 0.0f;  // logit = soft_cap * tanh(score / soft_cap); 0: none
  int32_t window = 0;     // the model's own sliding window in tokens; 0: global attention
  Rotary rotary;

  int32_t group() const { return query_heads / kv_heads; }
  bool operator==(const LayerCard&) const = default;
};

// The model that a memory was made by. Layers are in ascending order of their number.
struct ModelCard {
  std::string model_name;
  std::string weights_fingerprint;
  std::vector<LayerCard> layers;

  // Index into `layers`, or -1.
  int FindLayer(int32_t layer) const;
  bool operator==(const ModelCard&) const = default;
};

// Errors: InvalidArgument, which names the first field that makes no sense.
absl::Status ValidateLayer(const LayerCard& layer);

// Whether a host with the card `host` may use a memory that was made by `memory`.
// Errors: FailedPrecondition, which names the first difference with both sides.
absl::Status CheckSameModel(const ModelCard& memory, const ModelCard& host);

}  // namespace mneme

#endif  // MNEME_BASE_MODEL_CARD_H_
