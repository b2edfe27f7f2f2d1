// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/model_shape.h"

#include <map>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/src/card.h"

namespace mneme::llama {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Metadata = std::map<std::string, std::string>;

Status Read(const Metadata& metadata, ModelShape* shape, const std::vector<float>& divisors = {}) {
  return ReadModelShape(
      [&](const std::string& key) -> std::optional<std::string> {
        const auto found = metadata.find(key);
        if (found == metadata.end()) return std::nullopt;
        return found->second;
      },
      divisors, shape);
}

Metadata Llama() {
  return {{"general.architecture", "llama"},    {"general.name", "small"},
          {"llama.block_count", "3"},           {"llama.embedding_length", "576"},
          {"llama.attention.head_count", "9"},  {"llama.attention.head_count_kv", "3"},
          {"llama.rope.dimension_count", "64"}, {"llama.rope.freq_base", "100000.000000"}};
}

Metadata Gemma() {
  return {{"general.architecture", "gemma3"},        {"gemma3.block_count", "18"},
          {"gemma3.embedding_length", "640"},        {"gemma3.attention.head_count", "4"},
          {"gemma3.attention.head_count_kv", "1"},   {"gemma3.attention.key_length", "256"},
          {"gemma3.attention.value_length", "256"},  {"gemma3.rope.freq_base", "1000000.000000"},
          {"gemma3.attention.sliding_window", "512"}};
}

void ExpectNotServed(const Metadata& metadata, const std::string& reason) {
  ModelShape shape;
  const Status status = Read(metadata, &shape);
  EXPECT_EQ(status.code(), MNEME_STATUS_UNIMPLEMENTED);
  EXPECT_THAT(status.message(), HasSubstr(reason));
}

TEST(ModelShapeTest, ReadsLlama) {
  ModelShape shape;
  ASSERT_TRUE(Read(Llama(), &shape).ok());
  ASSERT_EQ(shape.layers.size(), 3u);
  EXPECT_EQ(shape.name, "small");
  EXPECT_FALSE(shape.normed);
  const LayerShape& layer = shape.layers[1];
  EXPECT_EQ(layer.q_heads, 9);
  EXPECT_EQ(layer.kv_heads, 3);
  EXPECT_EQ(layer.key_dim, 64);
  EXPECT_EQ(layer.value_dim, 64);
  EXPECT_FLOAT_EQ(layer.scale, 0.125f);
  EXPECT_EQ(layer.window, 0);
  EXPECT_FALSE(layer.rotary.halves);
  EXPECT_EQ(layer.rotary.dims, 64);
  EXPECT_FLOAT_EQ(layer.rotary.base, 1e5f);
}

TEST(ModelShapeTest, ReadsGemmasUnequalLayers) {
  ModelShape shape;
  ASSERT_TRUE(Read(Gemma(), &shape).ok());
  EXPECT_TRUE(shape.normed);
  std::vector<int32_t> global;
  ASSERT_TRUE(ChooseLayers(shape, {}, &global).ok());
  EXPECT_THAT(global, ElementsAre(5, 11, 17));
  EXPECT_FLOAT_EQ(shape.layers[5].rotary.base, 1e6f);
  EXPECT_FLOAT_EQ(shape.layers[6].rotary.base, 1e4f);
  EXPECT_EQ(shape.layers[6].window, 512);
  EXPECT_TRUE(shape.layers[0].rotary.halves);
  EXPECT_FLOAT_EQ(shape.layers[5].scale, 1.0f / 16.0f);
}

TEST(ModelShapeTest, LinearScalingIsForGlobalLayers) {
  Metadata metadata = Gemma();
  metadata["gemma3.rope.scaling.type"] = "linear";
  metadata["gemma3.rope.scaling.factor"] = "8.000000";
  ModelShape shape;
  ASSERT_TRUE(Read(metadata, &shape).ok());
  EXPECT_FLOAT_EQ(shape.layers[5].rotary.scale, 0.125f);
  EXPECT_FLOAT_EQ(shape.layers[4].rotary.scale, 1.0f);
}

TEST(ModelShapeTest, FrequenciesFollowBaseScaleAndDivisors) {
  RotaryShape rotary{false, 4, 100.0f, 0.5f, {1.0f, 4.0f}};
  EXPECT_THAT(InverseFrequencies(rotary), ElementsAre(0.5f, 0.0125f));
}

TEST(ModelShapeTest, RefusesUnknownArchitectures) {
  Metadata metadata = Llama();
  metadata["general.architecture"] = "mamba";
  ExpectNotServed(metadata, "architecture 'mamba' is not served");
  ExpectNotServed({}, "no architecture");
}

TEST(ModelShapeTest, RefusesSinksAsWeights) {
  ExpectNotServed({{"general.architecture", "gpt-oss"}}, "sinks as weights");
}

TEST(ModelShapeTest, RefusesLatentAttention) {
  ExpectNotServed({{"general.architecture", "deepseek2"}}, "latent attention");
  Metadata metadata = Llama();
  metadata["llama.attention.kv_lora_rank"] = "512";
  ExpectNotServed(metadata, "latent attention");
}

TEST(ModelShapeTest, RefusesOtherRotaryScalings) {
  Metadata metadata = Llama();
  metadata["llama.rope.scaling.type"] = "yarn";
  ExpectNotServed(metadata, "'yarn'");
}

TEST(ModelShapeTest, RefusesListsAndNonsense) {
  Metadata metadata = Llama();
  metadata.erase("llama.attention.head_count");  // llama.cpp hands no lists out as text
  ExpectNotServed(metadata, "llama.attention.head_count");
  metadata = Llama();
  metadata["llama.attention.head_count_kv"] = "[3, 3, 1]";
  ExpectNotServed(metadata, "where a number is expected");
  metadata = Llama();
  metadata["llama.attention.head_count_kv"] = "4";
  ExpectNotServed(metadata, "do not fit together");
}

TEST(ModelShapeTest, ChoosesGivenLayersAndRefusesWrongOnes) {
  ModelShape shape;
  ASSERT_TRUE(Read(Gemma(), &shape).ok());
  std::vector<int32_t> layers;
  ASSERT_TRUE(ChooseLayers(shape, {11, 17}, &layers).ok());
  EXPECT_THAT(layers, ElementsAre(11, 17));
  EXPECT_THAT(ChooseLayers(shape, {4}, &layers).message(), HasSubstr("sliding window of 512"));
  EXPECT_THAT(ChooseLayers(shape, {18}, &layers).message(), HasSubstr("no layer 18"));
  EXPECT_THAT(ChooseLayers(shape, {11, 5}, &layers).message(), HasSubstr("must ascend"));
}

}  // namespace
}  // namespace mneme::llama
