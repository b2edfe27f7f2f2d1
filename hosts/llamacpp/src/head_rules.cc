// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/head_rules.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

namespace mneme::llama {
namespace {

// Replaces the options' value by those given for each head, or by one for all.
template <typename Number>
void Replace(const Number* given, int32_t heads, std::vector<Number>* values) {
  if (given == nullptr) return;
  for (size_t i = 0; i < values->size(); ++i) (*values)[i] = given[heads == 1 ? 0 : i];
}

template <typename Number, typename Allowed>
Status Check(const std::string& where, const char* what, const std::vector<Number>& values, const char* expected,
             const Allowed& allowed) {
  for (const Number value : values) {
    if (allowed(value)) continue;
    return Invalid(where + what + ": expected " + expected + ", got " + std::to_string(value));
  }
  return Status();
}

Status CheckRules(const std::string& where, const HeadRules& rules) {
  MNEME_LLAMA_RETURN_IF_ERROR(
      Check(where, "top_k", rules.top_k, "0 or more", [](int64_t value) { return value >= 0; }));
  const auto from_zero = [](float value) { return std::isfinite(value) && value >= 0.0f; };
  MNEME_LLAMA_RETURN_IF_ERROR(Check(where, "distance", rules.distance, "a finite number, 0 or more", from_zero));
  MNEME_LLAMA_RETURN_IF_ERROR(Check(where, "decay", rules.decay, "a finite number, 0 or more", from_zero));
  return Check(where, "memory_bias", rules.memory_bias, "a finite number",
               [](float value) { return std::isfinite(value); });
}

}  // namespace

Status MakeHeadRules(const mneme_llama_options& options, const ModelShape& shape, const std::vector<int32_t>& layers,
                     std::vector<HeadRules>* rules) {
  std::vector<HeadRules> made(shape.layers.size());
  for (const int32_t layer : layers) {
    const auto heads = static_cast<size_t>(shape.layers[layer].q_heads);
    made[layer] = {std::vector<int64_t>(heads, options.top_k), std::vector<float>(heads, options.distance),
                   std::vector<float>(heads, options.memory_bias), std::vector<float>(heads, options.decay)};
  }
  if (options.n_rules > 0 && options.rules == nullptr) return Invalid("rules: is NULL with n_rules > 0");
  std::set<int32_t> seen;
  for (size_t i = 0; i < options.n_rules; ++i) {
    const mneme_llama_layer_rules& given = options.rules[i];
    const std::string where = "rules[" + std::to_string(i) + "].";
    if (!std::binary_search(layers.begin(), layers.end(), given.layer) || !seen.insert(given.layer).second) {
      return Invalid(where + "layer: expected a layer with a memory, each once, got " + std::to_string(given.layer));
    }
    const int32_t heads = shape.layers[given.layer].q_heads;
    if (given.n_heads != 1 && given.n_heads != heads) {
      return Invalid(where + "n_heads: expected 1 or the " + std::to_string(heads) + " query heads of layer " +
                     std::to_string(given.layer) + ", got " + std::to_string(given.n_heads));
    }
    HeadRules& of_layer = made[given.layer];
    Replace(given.top_k, given.n_heads, &of_layer.top_k);
    Replace(given.distance, given.n_heads, &of_layer.distance);
    Replace(given.memory_bias, given.n_heads, &of_layer.memory_bias);
    Replace(given.decay, given.n_heads, &of_layer.decay);
    MNEME_LLAMA_RETURN_IF_ERROR(CheckRules(where, of_layer));
  }
  *rules = std::move(made);
  return Status();
}

}  // namespace mneme::llama
