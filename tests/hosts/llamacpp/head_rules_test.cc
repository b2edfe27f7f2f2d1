// SPDX-License-Identifier: Apache-2.0
// Rules of single layers and heads: what is refused, and that they change what the model computes as they say.
#include "hosts/llamacpp/src/head_rules.h"

#include <cmath>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/main/session.h"
#include "tests/hosts/llamacpp/tiny_model.h"

namespace mneme::llama {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelShape Shape() {
  ModelShape shape;
  shape.layers.resize(3);
  for (LayerShape& layer : shape.layers) layer.q_heads = 2;
  return shape;
}

mneme_llama_options Options(const std::vector<mneme_llama_layer_rules>& rules) {
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.top_k = 32;
  options.distance = 2048;
  options.memory_bias = -1;
  options.rules = rules.data();
  options.n_rules = rules.size();
  return options;
}

TEST(HeadRulesTest, FillsHeadsAndReplacesWhatIsGiven) {
  const int64_t top_k[] = {3, 0};
  const float bias[] = {-4};
  std::vector<HeadRules> made;
  ASSERT_TRUE(MakeHeadRules(Options({{2, 2, top_k, nullptr, nullptr, nullptr}}), Shape(), {0, 2}, &made).ok());
  ASSERT_EQ(made.size(), 3u);
  EXPECT_THAT(made[0].top_k, ElementsAre(32, 32));
  EXPECT_TRUE(made[1].top_k.empty());
  EXPECT_THAT(made[2].top_k, ElementsAre(3, 0));
  EXPECT_THAT(made[2].distance, Each(2048.0f));
  ASSERT_TRUE(MakeHeadRules(Options({{0, 1, nullptr, nullptr, bias, nullptr}}), Shape(), {0, 2}, &made).ok());
  EXPECT_THAT(made[0].memory_bias, ElementsAre(-4, -4));
  EXPECT_THAT(made[2].memory_bias, ElementsAre(-1, -1));
}

TEST(HeadRulesTest, RefusesWithTheFieldsName) {
  const auto expect = [](const std::vector<mneme_llama_layer_rules>& rules, const std::string& reason) {
    std::vector<HeadRules> made;
    const Status status = MakeHeadRules(Options(rules), Shape(), {0, 2}, &made);
    EXPECT_EQ(status.code(), MNEME_STATUS_INVALID_ARGUMENT);
    EXPECT_THAT(status.message(), HasSubstr(reason));
  };
  const int64_t top_k[] = {3, -1};
  const float number[] = {NAN, -1};
  expect({{1, 1, top_k, nullptr, nullptr, nullptr}}, "rules[0].layer: expected a layer with a memory");
  expect({{0, 1, top_k, nullptr, nullptr, nullptr}, {0, 1, top_k, nullptr, nullptr, nullptr}}, "rules[1].layer");
  expect({{0, 3, top_k, nullptr, nullptr, nullptr}}, "rules[0].n_heads: expected 1 or the 2 query heads of layer 0");
  expect({{0, 2, top_k, nullptr, nullptr, nullptr}}, "rules[0].top_k: expected 0 or more, got -1");
  expect({{0, 1, nullptr, number, nullptr, nullptr}}, "rules[0].distance");
  expect({{0, 1, nullptr, nullptr, number, nullptr}}, "rules[0].memory_bias");
  expect({{0, 1, nullptr, nullptr, nullptr, number + 1}}, "rules[0].decay");
}

class AppliedRulesTest : public ::testing::Test {
 protected:
  AppliedRulesTest() {
    path_ = folder_.path() + "/tiny.gguf";
    ServedArchitectures().front().make()->Write(path_);
    model_ = LoadModel(path_);
    settings_.model = path_;
    settings_.threads = 1;
    settings_.window = 16;
  }

  // Logits of the last of 160 tokens.
  std::vector<float> Run(const ModelSettings& settings) {
    Session session(model_.get(), settings);
    const Store store(folder_.path() + "/store", 1);
    const Memory memory(store, std::to_string(++runs_), session, /*create=*/true, 0, "f16");
    session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
    std::vector<llama_token> tokens(16);
    for (int block = 0; block < 10; ++block) {
      for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<llama_token>((i * 7 + block * 5) % 96);
      session.Decode(tokens, /*all_logits=*/false);
    }
    const std::span<const float> logits = session.Logits(15);
    std::vector<float> result(logits.begin(), logits.end());
    session.Detach(0);
    return result;
  }

  const TemporaryFolder folder_;
  std::string path_;
  ModelPtr model_;
  ModelSettings settings_;
  int runs_ = 0;
};

TEST_F(AppliedRulesTest, TheSameForAllLayersIsWhatTheOptionsSay) {
  const std::vector<float> plain = Run(settings_);
  ModelSettings options = settings_;
  options.top_k = 5;
  options.memory_bias = -0.5f;
  options.distance = 100;
  options.decay = 0.25f;
  ModelSettings rules = settings_;
  for (const int32_t layer : {0, 1}) rules.rules.push_back({layer, {5, 5, 5, 5}, {100}, {-0.5f}, {0.25f}});
  rules.decay_beyond = options.decay_beyond;
  EXPECT_EQ(Run(rules), Run(options));
  EXPECT_NE(Run(rules), plain);
}

TEST_F(AppliedRulesTest, HeadsThatRetrieveNothingAreLocal) {
  ModelSettings none = settings_;
  for (const int32_t layer : {0, 1}) none.rules.push_back({layer, {0}, {}, {}, {}});
  ModelSettings local = settings_;
  local.fusion = "local-only";
  const std::vector<float> expected = Run(local);
  const std::vector<float> actual = Run(none);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-4f);
  ModelSettings one_head = none;
  one_head.rules[1].top_k = {0, 0, 32, 0};
  EXPECT_NE(Run(one_head), actual);
}

}  // namespace
}  // namespace mneme::llama
