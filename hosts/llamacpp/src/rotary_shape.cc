// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "hosts/llamacpp/src/model_shape.h"

namespace mneme::llama {

std::vector<float> InverseFrequencies(const RotaryShape& rotary) {
  std::vector<float> frequencies(static_cast<size_t>(rotary.dims / 2));
  float bounds[2] = {0.0f, 0.0f};
  if (rotary.yarn_mix != 0.0f) {
    ggml_rope_yarn_corr_dims(rotary.dims, rotary.yarn_context, rotary.base, rotary.yarn_beta_fast,
                             rotary.yarn_beta_slow, bounds);
  }
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double own = std::pow(static_cast<double>(rotary.base), -2.0 * static_cast<double>(i) / rotary.dims);
    if (!rotary.divisors.empty()) own /= static_cast<double>(rotary.divisors[i]);
    // ggml's rope_yarn: fast pairs keep their own frequency, slow ones are scaled, those between are mixed.
    const double width = std::max(0.001, static_cast<double>(bounds[1]) - static_cast<double>(bounds[0]));
    const double place = (static_cast<double>(i) - static_cast<double>(bounds[0])) / width;
    const double mix = (1.0 - std::clamp(place, 0.0, 1.0)) * static_cast<double>(rotary.yarn_mix);
    frequencies[i] = static_cast<float>(own * (static_cast<double>(rotary.scale) * (1.0 - mix) + mix));
  }
  return frequencies;
}

float RotaryMagnitude(const RotaryShape& rotary) {
  return rotary.yarn_mix != 0.0f ? rotary.factor * (1.0f + 0.1f * std::log(1.0f / rotary.scale)) : rotary.factor;
}

}  // namespace mneme::llama
