// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "base/status.h"
#include "capi/src/handles.h"
#include "capi/src/structs.h"

namespace mneme::capi {
namespace {

constexpr size_t kMaxText = 1023;

absl::StatusOr<std::string> ReadText(absl::string_view name, const char* text) {
  if (text == nullptr) return NullArgument(name);
  const size_t size = strnlen(text, kMaxText + 1);
  if (size >= 1 && size <= kMaxText) return std::string(text, size);
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": expected 1 to ", kMaxText, " bytes, got ", size > kMaxText ? "more" : "none"));
}

absl::Status AddLayer(CardObject& card, const mneme_layer_desc& desc) {
  if (desc.rotary_layout < MNEME_ROTARY_NONE || desc.rotary_layout > MNEME_ROTARY_HALVES) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer.rotary_layout: expected a mneme_rotary_layout (0 to 2), got ", desc.rotary_layout));
  }
  if (desc.rotary_pairs < 0 || desc.rotary_pairs > desc.key_dim / 2) {
    return absl::InvalidArgumentError(absl::StrCat("layer.rotary_pairs: expected 0 to key_dim / 2 = ", desc.key_dim / 2,
                                                   ", got ", desc.rotary_pairs));
  }
  if (desc.rotary_pairs > 0 && desc.rotary_inverse_frequencies == nullptr) {
    return NullArgument("layer.rotary_inverse_frequencies");
  }
  LayerCard layer;
  layer.layer = desc.layer;
  layer.query_heads = desc.q_heads;
  layer.kv_heads = desc.kv_heads;
  layer.key_dim = desc.key_dim;
  layer.value_dim = desc.value_dim;
  layer.scale = desc.scale;
  layer.soft_cap = desc.soft_cap;
  layer.window = desc.window;
  layer.rotary.layout = static_cast<RotaryLayout>(desc.rotary_layout);
  if (desc.rotary_pairs > 0) {
    layer.rotary.inverse_frequencies.assign(desc.rotary_inverse_frequencies,
                                            desc.rotary_inverse_frequencies + desc.rotary_pairs);
  }
  layer.rotary.magnitude = desc.rotary_magnitude;
  MNEME_RETURN_IF_ERROR(ValidateLayer(layer));
  std::vector<LayerCard>& layers = card.card.layers;
  if (!layers.empty() && layers.back().layer >= layer.layer) {
    return absl::InvalidArgumentError(absl::StrCat("layer.layer: expected a number above ", layers.back().layer,
                                                   " (layers are added in ascending order), got ", layer.layer));
  }
  layers.push_back(std::move(layer));
  return absl::OkStatus();
}

}  // namespace
}  // namespace mneme::capi

extern "C" {

using namespace mneme;        // NOLINT: the entry points only
using namespace mneme::capi;  // NOLINT

mneme_status mneme_card_create(const char* model_name, const char* weights_fingerprint, mneme_card** card) {
  return Guard([&]() -> absl::Status {
    if (card == nullptr) return NullArgument("card");
    auto object = std::make_shared<CardObject>();
    MNEME_ASSIGN_OR_RETURN(object->card.model_name, ReadText("model_name", model_name));
    MNEME_ASSIGN_OR_RETURN(object->card.weights_fingerprint, ReadText("weights_fingerprint", weights_fingerprint));
    *card = NewHandle(std::move(object));
    return absl::OkStatus();
  });
}

mneme_status mneme_card_add_layer(mneme_card* card, const mneme_layer_desc* layer) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<CardObject> object, FindHandle<CardObject>("card", card));
    MNEME_ASSIGN_OR_RETURN(const mneme_layer_desc desc, ReadStruct("layer", layer));
    return AddLayer(*object, desc);
  });
}

void mneme_card_release(mneme_card* card) {
  if (card == nullptr) return;
  // A release cannot be refused: a call that still reads the card keeps it.
  Guard([&] { return RemoveHandle<CardObject>("card", card, true); });
}

}  // extern "C"
