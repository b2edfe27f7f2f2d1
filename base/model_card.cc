// SPDX-License-Identifier: Apache-2.0
#include "base/model_card.h"

#include <cmath>

#include "absl/strings/str_cat.h"

#include "base/status.h"

namespace mneme {
namespace {

// Bounds far above those of any model. They keep products of sizes from overflowing.
constexpr int32_t kMaxHeads = 1 << 16;
constexpr int32_t kMaxDim = 1 << 16;

absl::Status Expect(bool holds, const char* field, const char* expected, double actual) {
  if (holds) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer.", field, ": expected ", expected, ", got ", actual));
}

template <typename T>
absl::Status Same(const T& memory, const T& host, absl::string_view field) {
  if (memory == host) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("card: ", field, " differs: the memory was made with ", memory, ", the host has ", host));
}

}  // namespace

int ModelCard::FindLayer(int32_t layer) const {
  // Most cards have all layers of a range, and cards that skip some are short.
  if (!layers.empty() && layer >= layers.front().layer) {
    const auto guess = static_cast<size_t>(static_cast<int64_t>(layer) - layers.front().layer);
    if (guess < layers.size() && layers[guess].layer == layer) return static_cast<int>(guess);
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].layer == layer) return static_cast<int>(i);
  }
  return -1;
}

absl::Status ValidateLayer(const LayerCard& layer) {
  absl::Status checks[] = {
      Expect(layer.layer >= 0, "layer", "0 or more", layer.layer),
      Expect(layer.kv_heads >= 1 && layer.kv_heads <= kMaxHeads, "kv_heads", "1 to 65536", layer.kv_heads),
      Expect(layer.query_heads >= 1 && layer.query_heads <= kMaxHeads, "q_heads", "1 to 65536", layer.query_heads),
      Expect(layer.kv_heads < 1 || layer.query_heads % layer.kv_heads == 0, "q_heads", "a multiple of kv_heads",
             layer.query_heads),
      Expect(layer.key_dim >= 1 && layer.key_dim <= kMaxDim, "key_dim", "1 to 65536", layer.key_dim),
      Expect(layer.value_dim >= 1 && layer.value_dim <= kMaxDim, "value_dim", "1 to 65536", layer.value_dim),
      Expect(std::isfinite(layer.scale) && layer.scale > 0, "scale", "a finite number above 0", layer.scale),
      Expect(std::isfinite(layer.soft_cap) && layer.soft_cap >= 0, "soft_cap", "a finite number, 0 or more",
             layer.soft_cap),
      Expect(layer.window >= 0, "window", "0 (global) or more", layer.window),
      Expect(std::isfinite(layer.rotary.magnitude) && layer.rotary.magnitude > 0, "rotary_magnitude",
             "a finite number above 0", layer.rotary.magnitude),
      Expect(2 * layer.rotary.inverse_frequencies.size() <= static_cast<size_t>(layer.key_dim), "rotary_pairs",
             "at most key_dim / 2", static_cast<double>(layer.rotary.inverse_frequencies.size())),
      Expect((layer.rotary.layout == RotaryLayout::kNone) == layer.rotary.inverse_frequencies.empty(), "rotary_pairs",
             "0 exactly if the layout is none", static_cast<double>(layer.rotary.inverse_frequencies.size())),
  };
  for (const absl::Status& check : checks) {
    if (!check.ok()) return check;
  }
  for (const float frequency : layer.rotary.inverse_frequencies) {
    if (!std::isfinite(frequency)) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer.rotary_inverse_frequencies: expected finite numbers, got ", frequency));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSameModel(const ModelCard& memory, const ModelCard& host) {
  absl::Status checks[] = {
      Same(memory.model_name, host.model_name, "model_name"),
      Same(memory.weights_fingerprint, host.weights_fingerprint, "weights_fingerprint"),
      Same(memory.layers.size(), host.layers.size(), "number of layers"),
  };
  for (const absl::Status& check : checks) {
    if (!check.ok()) return check;
  }
  for (size_t i = 0; i < memory.layers.size(); ++i) {
    const LayerCard& a = memory.layers[i];
    const LayerCard& b = host.layers[i];
    const std::string where = absl::StrCat("layer ", a.layer, " ");
    absl::Status fields[] = {
        Same(a.layer, b.layer, "layer number"),
        Same(a.query_heads, b.query_heads, where + "q_heads"),
        Same(a.kv_heads, b.kv_heads, where + "kv_heads"),
        Same(a.key_dim, b.key_dim, where + "key_dim"),
        Same(a.value_dim, b.value_dim, where + "value_dim"),
        Same(a.scale, b.scale, where + "scale"),
        Same(a.soft_cap, b.soft_cap, where + "soft_cap"),
        Same(a.window, b.window, where + "window"),
        Same(static_cast<int>(a.rotary.layout), static_cast<int>(b.rotary.layout), where + "rotary_layout"),
        Same(a.rotary.inverse_frequencies.size(), b.rotary.inverse_frequencies.size(), where + "rotary_pairs"),
        Same(a.rotary.magnitude, b.rotary.magnitude, where + "rotary_magnitude"),
    };
    for (const absl::Status& field : fields) {
      if (!field.ok()) return field;
    }
    for (size_t j = 0; j < a.rotary.inverse_frequencies.size(); ++j) {
      MNEME_RETURN_IF_ERROR(Same(a.rotary.inverse_frequencies[j], b.rotary.inverse_frequencies[j],
                                 absl::StrCat(where, "rotary_inverse_frequencies[", j, "]")));
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme
