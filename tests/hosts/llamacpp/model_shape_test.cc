// SPDX-License-Identifier: Apache-2.0
// What is read of models, with tiny ones whose settings are known; whether it is enough shows architectures_test.cc.
#include "hosts/llamacpp/src/model_shape.h"

#include <algorithm>
#include <map>
#include <string>

#include "base/temporary_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/src/card.h"
#include "tests/hosts/llamacpp/tiny_model.h"

namespace mneme::llama {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelShape Read(const std::string& name) {
  const std::vector<TinyArchitecture> served = ServedArchitectures();
  const auto found = std::find_if(served.begin(), served.end(), [&](const auto& one) { return one.name == name; });
  EXPECT_NE(found, served.end()) << name;
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/tiny.gguf";
  found->make()->Write(path);
  const ModelPtr model = LoadModel(path);
  ModelShape shape;
  const Status status = ReadModelShape(model.get(), &shape);
  EXPECT_TRUE(status.ok()) << status.message();
  return shape;
}

TEST(ModelShapeTest, ReadsHeadsDimsAndScale) {
  const ModelShape shape = Read("llama");
  EXPECT_EQ(shape.name, "tiny llama");
  EXPECT_EQ(shape.architecture, "llama");
  ASSERT_EQ(shape.layers.size(), 2u);
  const LayerShape& layer = shape.layers[1];
  EXPECT_EQ(layer.refusal, "");
  EXPECT_EQ(layer.q_heads, TinyModel::kHeads);
  EXPECT_EQ(layer.kv_heads, TinyModel::kKvHeads);
  EXPECT_EQ(layer.key_dim, TinyModel::kDim);
  EXPECT_EQ(layer.value_dim, TinyModel::kDim);
  EXPECT_FLOAT_EQ(layer.scale, 0.25f);
  EXPECT_EQ(layer.window, 0);
  EXPECT_FALSE(layer.rotary.halves);
  EXPECT_EQ(layer.rotary.dims, TinyModel::kDim);
  EXPECT_FLOAT_EQ(layer.rotary.base, 1e4f);
  EXPECT_EQ(layer.nodes.key, (NodeMark{"Kcur-1", GGML_OP_RESHAPE}));
  EXPECT_EQ(layer.nodes.rotated_key, (NodeMark{"Kcur-1", GGML_OP_ROPE}));
}

TEST(ModelShapeTest, FindsWindowsAndTheBaseOfGlobalLayers) {
  const ModelShape shape = Read("gemma3");
  std::vector<int32_t> global;
  ASSERT_TRUE(ChooseLayers(shape, {}, &global).ok());
  EXPECT_THAT(global, ElementsAre(5, 11));
  EXPECT_EQ(shape.layers[4].window, 24);
  EXPECT_FLOAT_EQ(shape.layers[4].rotary.base, 1e4f);
  EXPECT_FLOAT_EQ(shape.layers[5].rotary.base, 1e6f);
  EXPECT_TRUE(shape.layers[5].rotary.halves);
  EXPECT_FLOAT_EQ(shape.layers[5].scale, 0.25f) << "the factor of the queries is part of it";
}

TEST(ModelShapeTest, ReadsWhatIsSpecial) {
  EXPECT_FLOAT_EQ(Read("gemma2").layers[1].soft_cap, 2.0f);
  EXPECT_EQ(Read("gptneox").layers[0].rotary.dims, 8);
  EXPECT_FLOAT_EQ(Read("granite").layers[0].scale, 0.4f);
  EXPECT_FLOAT_EQ(Read("llama, linear scaling").layers[0].rotary.scale, 1.0f / 3.0f);
  EXPECT_EQ(Read("llama, rotary factors").layers[0].rotary.divisors.size(), 8u);
  EXPECT_EQ(Read("llama, one KV head").layers[0].kv_heads, 1);
  EXPECT_GT(Read("qwen2, YaRN").layers[0].rotary.yarn_mix, 0.0f);
  EXPECT_FLOAT_EQ(RotaryMagnitude(Read("phi3, LongRoPE").layers[0].rotary), 1.19f);
  const ModelShape smollm3 = Read("smollm3");
  EXPECT_EQ(smollm3.layers[3].rotary.dims, 0);
  EXPECT_EQ(smollm3.layers[4].rotary.dims, TinyModel::kDim);
  EXPECT_EQ(smollm3.layers[3].nodes.key, smollm3.layers[3].nodes.rotated_key);
}

TEST(ModelShapeTest, FrequenciesFollowBaseScaleAndDivisors) {
  const RotaryShape rotary = {.dims = 4, .base = 100.0f, .scale = 0.5f, .divisors = {1.0f, 4.0f}};
  EXPECT_THAT(InverseFrequencies(rotary), ElementsAre(0.5f, 0.0125f));
  EXPECT_FLOAT_EQ(RotaryMagnitude(rotary), 1.0f);
}

TEST(ModelShapeTest, ChoosesGivenLayersAndRefusesWrongOnes) {
  ModelShape shape = Read("gemma3");
  std::vector<int32_t> layers;
  ASSERT_TRUE(ChooseLayers(shape, {5, 11}, &layers).ok());
  EXPECT_THAT(layers, ElementsAre(5, 11));
  EXPECT_THAT(ChooseLayers(shape, {4}, &layers).message(), HasSubstr("sliding window of 24"));
  EXPECT_THAT(ChooseLayers(shape, {12}, &layers).message(), HasSubstr("no layer 12"));
  EXPECT_THAT(ChooseLayers(shape, {11, 5}, &layers).message(), HasSubstr("must ascend"));
  shape.layers[11].refusal = "some reason";
  EXPECT_TRUE(ChooseLayers(shape, {5}, &layers).ok());
  EXPECT_THAT(ChooseLayers(shape, {5, 11}, &layers).message(), HasSubstr("layer 11: some reason"));
  EXPECT_THAT(ChooseLayers(shape, {}, &layers).message(), HasSubstr("layer 11: some reason"));
}

}  // namespace
}  // namespace mneme::llama
