// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/self_check.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mneme::llama {
namespace {

// Turns rows [tokens, heads, dim] to their positions.
std::vector<double> Rotated(std::span<const float> rows, const RotaryShape& rotary, int64_t heads, int64_t dim,
                            std::span<const int32_t> positions) {
  std::vector<double> turned(rows.begin(), rows.end());
  const std::vector<float> frequencies = InverseFrequencies(rotary);
  const size_t pairs = frequencies.size();
  const double magnitude = static_cast<double>(RotaryMagnitude(rotary));
  for (size_t row = 0; row < turned.size() / static_cast<size_t>(dim); ++row) {
    double* const x = turned.data() + row * static_cast<size_t>(dim);
    const double position = positions[row / static_cast<size_t>(heads)];
    for (size_t i = 0; i < pairs; ++i) {
      double& a = x[rotary.halves ? i : 2 * i];
      double& b = x[rotary.halves ? i + pairs : 2 * i + 1];
      const double angle = position * static_cast<double>(frequencies[i]);
      const double turned_a = magnitude * (a * std::cos(angle) - b * std::sin(angle));
      b = magnitude * (a * std::sin(angle) + b * std::cos(angle));
      a = turned_a;
    }
  }
  return turned;
}

double Rounded(double value, ggml_type type) {
  const auto number = static_cast<float>(value);
  if (type == GGML_TYPE_F16) return static_cast<double>(ggml_fp16_to_fp32(ggml_fp32_to_fp16(number)));
  if (type == GGML_TYPE_BF16) return static_cast<double>(ggml_bf16_to_fp32(ggml_fp32_to_bf16(number)));
  return value;
}

// Softmax weights of one query [dim] over the rows of one KV head that it sees: rows 0 to `last`, `stride` apart.
std::vector<double> Weights(const double* query, const double* keys, int64_t dim, int64_t stride, int64_t last,
                            double scale, double soft_cap) {
  std::vector<double> weights;
  for (int64_t row = 0; row <= last; ++row) {
    double score = 0.0;
    for (int64_t i = 0; i < dim; ++i) score += query[i] * keys[row * stride + i];
    score *= scale;
    weights.push_back(soft_cap == 0.0 ? score : soft_cap * std::tanh(score / soft_cap));
  }
  const double most = *std::max_element(weights.begin(), weights.end());
  double sum = 0.0;
  for (double& weight : weights) sum += weight = std::exp(weight - most);
  for (double& weight : weights) weight /= sum;
  return weights;
}

}  // namespace

double AttentionDifference(const LayerShape& layer, const CapturedRows& rows, std::span<const float> output) {
  RotaryShape rotary = layer.rotary;
  if (rows.rotated) rotary.dims = 0;
  std::vector<double> queries = Rotated(rows.queries, rotary, layer.q_heads, layer.key_dim, rows.positions);
  std::vector<double> keys = Rotated(rows.keys, rotary, layer.kv_heads, layer.key_dim, rows.positions);
  for (double& element : queries) element = Rounded(element, rows.query_type);
  for (double& element : keys) element = Rounded(element, rows.cache_type);
  const auto tokens = static_cast<int64_t>(rows.positions.size());
  const int64_t key_stride = static_cast<int64_t>(layer.kv_heads) * layer.key_dim;
  const int64_t value_stride = static_cast<int64_t>(layer.kv_heads) * layer.value_dim;
  double difference = 0.0;
  double largest = 0.0;
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t head = 0; head < layer.q_heads; ++head) {
      const int64_t kv_head = head / (layer.q_heads / layer.kv_heads);
      const std::vector<double> weights = Weights(
          queries.data() + (token * layer.q_heads + head) * layer.key_dim, keys.data() + kv_head * layer.key_dim,
          layer.key_dim, key_stride, token, static_cast<double>(rows.scale), static_cast<double>(layer.soft_cap));
      const float* const values = rows.values.data() + kv_head * layer.value_dim;
      const float* const own = output.data() + (token * layer.q_heads + head) * layer.value_dim;
      for (int64_t i = 0; i < layer.value_dim; ++i) {
        double expected = 0.0;
        for (int64_t row = 0; row <= token; ++row) {
          expected += weights[static_cast<size_t>(row)] *
                      Rounded(static_cast<double>(values[row * value_stride + i]), rows.cache_type);
        }
        const double apart = std::fabs(expected - static_cast<double>(own[i]));
        if (!std::isfinite(apart)) return std::numeric_limits<double>::infinity();
        difference = std::max(difference, apart);
        largest = std::max(largest, std::fabs(static_cast<double>(own[i])));
      }
    }
  }
  if (difference == 0.0) return 0.0;
  return largest > 0.0 ? difference / largest : std::numeric_limits<double>::infinity();
}

}  // namespace mneme::llama
