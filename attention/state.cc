// SPDX-License-Identifier: Apache-2.0
#include "attention/state.h"

#include <algorithm>
#include <cmath>

namespace mneme {

void MergeState(float* output, float* log_sum_exp, const float* other_output, float other_log_sum_exp,
                int64_t value_dim) {
  if (other_log_sum_exp == kEmptyLogSumExp) return;
  if (*log_sum_exp == kEmptyLogSumExp) {
    std::copy_n(other_output, value_dim, output);
    *log_sum_exp = other_log_sum_exp;
    return;
  }
  // The weights are computed in double, which costs little and leaves only the rounding of the last product.
  const double a = static_cast<double>(*log_sum_exp);
  const double b = static_cast<double>(other_log_sum_exp);
  const double greatest = std::max(a, b);
  const double mass_a = std::exp(a - greatest);
  const double mass_b = std::exp(b - greatest);
  const double mass = mass_a + mass_b;
  const auto weight_a = static_cast<float>(mass_a / mass);
  const auto weight_b = static_cast<float>(mass_b / mass);
  for (int64_t i = 0; i < value_dim; ++i) output[i] = weight_a * output[i] + weight_b * other_output[i];
  *log_sum_exp = static_cast<float>(greatest + std::log(mass));
}

void GateState(float* local, const float* memory, float gate, int64_t value_dim) {
  // 1 - sigmoid(g) = sigmoid(-g), which stays precise where sigmoid(g) is near 1.
  const auto of_memory = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(gate))));
  const auto of_local = static_cast<float>(1 / (1 + std::exp(static_cast<double>(gate))));
  for (int64_t i = 0; i < value_dim; ++i) local[i] = of_memory * memory[i] + of_local * local[i];
}

}  // namespace mneme
