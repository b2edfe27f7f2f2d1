// SPDX-License-Identifier: Apache-2.0
#include "base/model_card.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

LayerCard GoodLayer() {
  LayerCard layer;
  layer.layer = 3;
  layer.query_heads = 9;
  layer.kv_heads = 3;
  layer.key_dim = 64;
  layer.value_dim = 64;
  layer.scale = 0.125f;
  layer.rotary.layout = RotaryLayout::kInterleaved;
  layer.rotary.inverse_frequencies.assign(32, 0.5f);
  return layer;
}

TEST(ModelCardTest, AcceptsAGoodLayer) {
  EXPECT_TRUE(ValidateLayer(GoodLayer()).ok());
}

TEST(ModelCardTest, NamesTheBadField) {
  struct Case {
    void (*spoil)(LayerCard&);
    const char* message;
  };
  const Case cases[] = {
      {[](LayerCard& l) { l.layer = -1; }, "layer.layer: expected 0 or more, got -1"},
      {[](LayerCard& l) { l.kv_heads = 0; }, "layer.kv_heads"},
      {[](LayerCard& l) { l.query_heads = 8; }, "layer.q_heads: expected a multiple of kv_heads, got 8"},
      {[](LayerCard& l) { l.key_dim = 0; }, "layer.key_dim"},
      {[](LayerCard& l) { l.value_dim = 1 << 20; }, "layer.value_dim"},
      {[](LayerCard& l) { l.scale = std::numeric_limits<float>::quiet_NaN(); }, "layer.scale"},
      {[](LayerCard& l) { l.soft_cap = -1; }, "layer.soft_cap"},
      {[](LayerCard& l) { l.window = -5; }, "layer.window"},
      {[](LayerCard& l) { l.rotary.inverse_frequencies.resize(33, 1.0f); }, "layer.rotary_pairs"},
      {[](LayerCard& l) { l.rotary.inverse_frequencies[7] = std::numeric_limits<float>::infinity(); },
       "layer.rotary_inverse_frequencies"},
      {[](LayerCard& l) { l.rotary.layout = RotaryLayout::kNone; }, "layer.rotary_pairs"},
  };
  for (const Case& c : cases) {
    LayerCard layer = GoodLayer();
    c.spoil(layer);
    const absl::Status status = ValidateLayer(layer);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

TEST(ModelCardTest, TellsTheFirstDifference) {
  ModelCard memory{"smol", "sha:1", {GoodLayer()}};
  EXPECT_TRUE(CheckSameModel(memory, memory).ok());

  ModelCard host = memory;
  host.weights_fingerprint = "sha:2";
  absl::Status status = CheckSameModel(memory, host);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("weights_fingerprint"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("sha:1"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("sha:2"));

  host = memory;
  host.layers[0].rotary.inverse_frequencies[4] = 0.25f;
  EXPECT_THAT(std::string(CheckSameModel(memory, host).message()), HasSubstr("layer 3 rotary_inverse_frequencies[4]"));
}

}  // namespace
}  // namespace mneme
