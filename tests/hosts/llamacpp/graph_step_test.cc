// SPDX-License-Identifier: Apache-2.0
// llama.cpp's own attention is left out of the graph where its output is replaced, and always put back. No model
// needed: nodes without a graph that runs.
#include "hosts/llamacpp/src/graph_step.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kTokens = 3;
constexpr int32_t kLayer = 1;

class GraphStepTest : public ::testing::Test {
 protected:
  GraphStepTest() : context_(ggml_init({1 << 20, nullptr, /*no_alloc=*/false}), &ggml_free) {
    SetLayers(2);
    settings_.position_policy = MNEME_POSITION_FIXED_DISTANCE;
    values_ = NewProduct("Vcur-1", 2, kTokens, nullptr);
    keys_ = NewProduct("Kcur-1", 2, kTokens, nullptr);
    attention_ = NewAttention("kqv_out-1", &output_);
    plan_.positions = {0, 1, 2};
    plan_.sequences = {0, 0, 0};
    plan_.steps.resize(1);
    plan_.steps[0].sequence = &sequence_;
    plan_.steps[0].visible = true;
    plan_.runs = {{0, kTokens, 0}};
  }

  void SetLayers(int32_t kv_heads) {
    shape_.layers.assign(2, {.q_heads = 4,
                             .kv_heads = kv_heads,
                             .key_dim = 8,
                             .value_dim = 8,
                             .scale = 0.25f,
                             .rotary = {.halves = false, .dims = 8}});
    for (size_t i = 0; i < shape_.layers.size(); ++i) {
      const std::string number = std::to_string(i);
      shape_.layers[i].nodes = {.query = {"Qcur-" + number, GGML_OP_RESHAPE},
                                .key = {"Kcur-" + number, GGML_OP_RESHAPE},
                                .rotated_key = {"Kcur-" + number, GGML_OP_ROPE},
                                .value = {"Vcur-" + number, GGML_OP_RESHAPE},
                                .output = {"kqv_out-" + number, GGML_OP_RESHAPE}};
    }
  }

  // Rows by heads, which are a flat product of the same name reshaped.
  ggml_tensor* NewProduct(const char* name, int64_t heads, int64_t tokens, ggml_tensor** product) {
    ggml_context* c = context_.get();
    ggml_tensor* weights = ggml_new_tensor_2d(c, GGML_TYPE_F32, 4, 8 * heads);
    ggml_tensor* flat = ggml_mul_mat(c, weights, ggml_new_tensor_2d(c, GGML_TYPE_F32, 4, tokens));
    ggml_set_name(flat, name);
    if (product != nullptr) *product = flat;
    ggml_tensor* rows = ggml_reshape_3d(c, flat, 8, heads, tokens);
    ggml_set_name(rows, name);
    return rows;
  }

  ggml_tensor* NewAttention(const char* name, ggml_tensor** output) {
    ggml_context* c = context_.get();
    ggml_tensor* query = ggml_new_tensor_3d(c, GGML_TYPE_F32, 8, kTokens, 4);
    ggml_tensor* cells = ggml_new_tensor_3d(c, GGML_TYPE_F16, 8, 16, 2);
    ggml_tensor* mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, 16, kTokens);
    ggml_tensor* attention = ggml_flash_attn_ext(c, query, cells, cells, mask, 0.25f, 0.0f, 0.0f);
    *output = ggml_reshape_2d(c, attention, 32, kTokens);
    ggml_set_name(*output, name);
    attention->flags |= GGML_TENSOR_FLAG_COMPUTE;  // as of every node of a graph
    return attention;
  }

  // The step until the attention node was asked for.
  std::unique_ptr<GraphStep> UntilAttention() {
    auto step = std::make_unique<GraphStep>(shape_, layers_, settings_);
    step->Begin(&plan_, nullptr);
    EXPECT_FALSE(step->Wants(*values_));
    EXPECT_TRUE(step->Wants(*keys_));
    step->Computed(*keys_);
    EXPECT_FALSE(step->Wants(*attention_));
    EXPECT_TRUE(step->status().ok()) << step->status().message();
    return step;
  }
  static bool IsComputed(const ggml_tensor* node) { return (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0; }

  const std::unique_ptr<ggml_context, decltype(&ggml_free)> context_;
  ModelShape shape_;
  std::vector<int32_t> layers_ = {0, kLayer};  // not the first, at which positions are looked at, too
  AttendSettings settings_;
  Sequence sequence_;
  BatchPlan plan_;
  ggml_tensor *values_, *keys_, *attention_, *output_;
};

TEST_F(GraphStepTest, LeavesOutAttentionThatIsReplaced) {
  const auto step = UntilAttention();
  EXPECT_FALSE(IsComputed(attention_));
  EXPECT_TRUE(step->Wants(*output_));
  EXPECT_FALSE(IsComputed(attention_)) << "until it would have been computed";
  step->Computed(*output_);  // fails, as the queries are missing
  EXPECT_TRUE(IsComputed(attention_));
}

TEST_F(GraphStepTest, PutsBackWhatLlamaGaveUp) {
  const auto step = UntilAttention();
  step->End();
  EXPECT_TRUE(IsComputed(attention_));
}

TEST_F(GraphStepTest, ComputesAttentionThatIsNotReplaced) {
  plan_.steps[0].visible = false;
  layers_ = {kLayer};  // of others, nothing but the keys and values would be looked at
  UntilAttention();
  EXPECT_TRUE(IsComputed(attention_)) << "no row of the memory is visible";
}

TEST_F(GraphStepTest, ComputesAttentionThatIsReplacedInPart) {
  plan_.runs = {{0, 2, 0}, {2, kTokens, -1}};
  UntilAttention();
  EXPECT_TRUE(IsComputed(attention_)) << "a token belongs to a sequence without a memory";
  plan_.steps.resize(2);
  plan_.steps[1] = plan_.steps[0];
  plan_.steps[1].visible = false;
  plan_.runs = {{0, 2, 0}, {2, kTokens, 1}};
  UntilAttention();
  EXPECT_TRUE(IsComputed(attention_)) << "of a token's memory nothing is visible";
  settings_.always_overwrite = true;
  UntilAttention();
  EXPECT_FALSE(IsComputed(attention_));
}

TEST_F(GraphStepTest, ComputesOtherLayersAttention) {
  GraphStep step(shape_, layers_, settings_);
  step.Begin(&plan_, nullptr);
  EXPECT_FALSE(step.Wants(*attention_)) << "no layer's keys came before it";
  EXPECT_TRUE(IsComputed(attention_));
}

// One KV head and one token: the flat products have the shape of the rows by heads.
TEST_F(GraphStepTest, StopsOnceForKeysAndOnceForValues) {
  SetLayers(1);
  plan_.steps[0].visible = false;
  ggml_tensor *value_product, *key_product;
  ggml_tensor* values = NewProduct("Vcur-1", 1, 1, &value_product);
  ggml_tensor* keys = NewProduct("Kcur-1", 1, 1, &key_product);
  GraphStep keys_first(shape_, layers_, settings_);
  keys_first.Begin(&plan_, nullptr);
  EXPECT_FALSE(keys_first.Wants(*key_product));
  EXPECT_TRUE(keys_first.Wants(*keys));
  keys_first.Computed(*keys);
  EXPECT_FALSE(keys_first.Wants(*value_product));
  EXPECT_TRUE(keys_first.Wants(*values));
  GraphStep values_first(shape_, layers_, settings_);
  values_first.Begin(&plan_, nullptr);
  EXPECT_FALSE(values_first.Wants(*value_product));
  EXPECT_FALSE(values_first.Wants(*values)) << "copied where the keys are";
  EXPECT_FALSE(values_first.Wants(*key_product));
  EXPECT_TRUE(values_first.Wants(*keys));
}

TEST_F(GraphStepTest, RefusesAnOutputOfOtherAttention) {
  ggml_tensor* other_output = nullptr;
  ggml_tensor* other = NewAttention("kqv_out-1", &other_output);
  const auto step = UntilAttention();
  EXPECT_FALSE(step->Wants(*other));
  EXPECT_TRUE(IsComputed(other)) << "one is left out, no more";
  step->Computed(*other_output);
  EXPECT_FALSE(step->status().ok());
  EXPECT_TRUE(IsComputed(attention_));
}

}  // namespace
}  // namespace mneme::llama
