// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/self_check.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace mneme::llama {
namespace {

constexpr int32_t kTokens = 24;

// Rows of a small layer, and what attention over them gives.
struct Example {
  LayerShape layer = {
      .q_heads = 4, .kv_heads = 2, .key_dim = 8, .value_dim = 6, .scale = 0.3f, .rotary = {.halves = true, .dims = 4}};
  std::vector<float> queries, keys, values, output;
  std::vector<int32_t> positions;

  Example() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& rows, int32_t heads, int32_t dim) {
      rows.resize(static_cast<size_t>(kTokens * heads * dim));
      for (float& x : rows) x = normal(random);
    };
    fill(queries, layer.q_heads, layer.key_dim);
    fill(keys, layer.kv_heads, layer.key_dim);
    fill(values, layer.kv_heads, layer.value_dim);
    for (int32_t i = 0; i < kTokens; ++i) positions.push_back(100 + i);
    AttendAll();
  }

  void AttendAll() {
    output.assign(static_cast<size_t>(kTokens * layer.q_heads * layer.value_dim), 0.0f);
    for (int32_t token = 0; token < kTokens; ++token) {
      for (int32_t head = 0; head < layer.q_heads; ++head) AttendOne(token, head);
    }
  }

  // By the distance of both alone: q' R(n - m) k, the other way to write what is tested.
  double Score(int32_t token, int32_t head, int32_t row) const {
    const float* q = &queries[static_cast<size_t>((token * layer.q_heads + head) * layer.key_dim)];
    const float* k = &keys[static_cast<size_t>((row * layer.kv_heads + head / 2) * layer.key_dim)];
    const int pairs = layer.rotary.dims / 2;
    double score = 0.0;
    for (int i = 0; i < pairs; ++i) {
      const double angle = (row - token) * std::pow(layer.rotary.base, -2.0 * i / layer.rotary.dims);
      score += (q[i] * k[i] + q[i + pairs] * k[i + pairs]) * std::cos(angle) +
               (q[i + pairs] * k[i] - q[i] * k[i + pairs]) * std::sin(angle);
    }
    for (int i = layer.rotary.dims; i < layer.key_dim; ++i) score += q[i] * k[i];
    return score * layer.scale;
  }
  void AttendOne(int32_t token, int32_t head) {
    double sum = 0.0;
    double largest = -INFINITY;
    for (int32_t row = 0; row <= token; ++row) largest = std::fmax(largest, Score(token, head, row));
    std::vector<double> result(static_cast<size_t>(layer.value_dim), 0.0);
    for (int32_t row = 0; row <= token; ++row) {
      const double weight = std::exp(Score(token, head, row) - largest);
      sum += weight;
      for (int32_t i = 0; i < layer.value_dim; ++i) {
        result[static_cast<size_t>(i)] +=
            weight * values[static_cast<size_t>((row * layer.kv_heads + head / 2) * layer.value_dim + i)];
      }
    }
    for (int32_t i = 0; i < layer.value_dim; ++i) {
      output[static_cast<size_t>((token * layer.q_heads + head) * layer.value_dim + i)] =
          static_cast<float>(result[static_cast<size_t>(i)] / sum);
    }
  }

  CapturedRows Rows() const { return {queries, keys, values, positions, /*rotated=*/false, layer.scale}; }
};

TEST(SelfCheckTest, AgreesWithAttentionByDistances) {
  const Example example;
  EXPECT_LT(AttentionDifference(example.layer, example.Rows(), example.output), 1e-6);
}

// Large keys, as Qwen 2 has them: the model's own attention over rounded keys is another than over what was captured.
TEST(SelfCheckTest, RoundsAsTheCacheDoes) {
  Example example;
  for (float& key : example.keys) key = 300.0f + 20.0f * key;
  const std::vector<float> captured = example.keys;
  example.layer.rotary.dims = 0;
  for (float& key : example.keys) key = ggml_fp16_to_fp32(ggml_fp32_to_fp16(key));
  example.AttendAll();
  CapturedRows rows = example.Rows();
  rows.keys = captured;
  EXPECT_GT(AttentionDifference(example.layer, rows, example.output), 0.02);
  rows.cache_type = GGML_TYPE_F16;
  rows.query_type = GGML_TYPE_F32;
  std::vector<float> values = example.values;
  for (float& value : example.values) value = ggml_fp16_to_fp32(ggml_fp32_to_fp16(value));
  example.AttendAll();
  rows.values = values;
  EXPECT_LT(AttentionDifference(example.layer, rows, example.output), 1e-5);
}

TEST(SelfCheckTest, FindsEveryWrongAssumption) {
  const Example example;
  const auto difference = [&](const LayerShape& layer, const CapturedRows& rows) {
    return AttentionDifference(layer, rows, example.output);
  };
  LayerShape wrong = example.layer;
  wrong.rotary.halves = false;
  EXPECT_GT(difference(wrong, example.Rows()), 0.05);
  wrong = example.layer;
  wrong.rotary.dims = 8;
  EXPECT_GT(difference(wrong, example.Rows()), 0.05);
  wrong = example.layer;
  wrong.rotary.base = 1e2f;
  EXPECT_GT(difference(wrong, example.Rows()), 0.05);
  CapturedRows rows = example.Rows();
  rows.rotated = true;
  EXPECT_GT(difference(example.layer, rows), 0.05);
  rows = example.Rows();
  rows.scale *= 2;
  EXPECT_GT(difference(example.layer, rows), 0.05);
  rows = example.Rows();
  rows.keys = rows.queries.first(rows.keys.size());
  EXPECT_GT(difference(example.layer, rows), 0.05);
  std::vector<float> output = example.output;
  output.back() = NAN;
  EXPECT_TRUE(std::isinf(AttentionDifference(example.layer, example.Rows(), output)));
}

}  // namespace
}  // namespace mneme::llama
