// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/card.h"

namespace mneme::llama {

Status ChooseLayers(const ModelShape& shape, const std::vector<int32_t>& wanted, std::vector<int32_t>* layers) {
  const auto count = static_cast<int32_t>(shape.layers.size());
  layers->clear();
  if (wanted.empty()) {
    for (int32_t i = 0; i < count; ++i) {
      if (shape.layers[i].window > 0) continue;
      if (!shape.layers[i].refusal.empty()) {
        return NotServed("layer " + std::to_string(i) + ": " + shape.layers[i].refusal + " (architecture '" +
                         shape.architecture + "')");
      }
      layers->push_back(i);
    }
    return layers->empty() ? NotServed("the model has no layer with global attention") : Status();
  }
  for (const int32_t layer : wanted) {
    if (layer < 0 || layer >= count) {
      return Invalid("layers: the model has no layer " + std::to_string(layer) + ", only 0 to " +
                     std::to_string(count - 1));
    }
    if (!layers->empty() && layer <= layers->back()) {
      return Invalid("layers: must ascend, " + std::to_string(layer) + " follows " + std::to_string(layers->back()));
    }
    if (shape.layers[layer].window > 0) {
      return Invalid("layers: layer " + std::to_string(layer) + " has a sliding window of " +
                     std::to_string(shape.layers[layer].window) + " tokens; memory belongs to global layers");
    }
    if (!shape.layers[layer].refusal.empty()) {
      return NotServed("layer " + std::to_string(layer) + ": " + shape.layers[layer].refusal);
    }
    layers->push_back(layer);
  }
  return Status();
}

Status MakeCard(const ModelShape& shape, const std::string& fingerprint, const std::vector<int32_t>& layers,
                CardPtr* card) {
  mneme_card* made = nullptr;
  MNEME_LLAMA_RETURN_IF_ERROR(FromEngine(mneme_card_create(shape.name.c_str(), fingerprint.c_str(), &made)));
  CardPtr owned(made);
  for (const int32_t number : layers) {
    const LayerShape& layer = shape.layers[number];
    const std::vector<float> frequencies = InverseFrequencies(layer.rotary);
    mneme_layer_desc desc = MNEME_LAYER_DESC_INIT;
    desc.layer = number;
    desc.q_heads = layer.q_heads;
    desc.kv_heads = layer.kv_heads;
    desc.key_dim = layer.key_dim;
    desc.value_dim = layer.value_dim;
    desc.scale = layer.scale;
    desc.window = layer.window;
    desc.soft_cap = layer.soft_cap;
    desc.rotary_layout = frequencies.empty()   ? MNEME_ROTARY_NONE
                         : layer.rotary.halves ? MNEME_ROTARY_HALVES
                                               : MNEME_ROTARY_INTERLEAVED;
    desc.rotary_magnitude = frequencies.empty() ? 1.0f : RotaryMagnitude(layer.rotary);
    desc.rotary_pairs = static_cast<int32_t>(frequencies.size());
    desc.rotary_inverse_frequencies = frequencies.data();
    MNEME_LLAMA_RETURN_IF_ERROR(FromEngine(mneme_card_add_layer(owned.get(), &desc)));
  }
  *card = std::move(owned);
  return Status();
}

}  // namespace mneme::llama
