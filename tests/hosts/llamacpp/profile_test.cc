// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/profile.h"

#include <fstream>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::llama {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A command with the model options, told `arguments` beside a model.
class ProfileTest : public ::testing::Test {
 protected:
  ProfileTest() {
    std::ofstream(folder_.path() + "/model.gguf") << "not read";
    AddModelOptions(&command_, &settings_);
  }

  void Parse(const std::string& arguments) { command_.parse("--model " + folder_.path() + "/model.gguf " + arguments); }
  std::string Write(const std::string& text) {
    const std::string path = folder_.path() + "/profile.json";
    std::ofstream(path) << text;
    return path;
  }
  void ExpectRefused(const std::string& text, const std::string& reason) {
    try {
      Parse("--profile " + Write(text));
      FAIL() << text;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), HasSubstr(reason));
    }
  }

  const TemporaryFolder folder_;
  CLI::App command_;
  ModelSettings settings_;
};

TEST_F(ProfileTest, TakesWhatTheCommandLineLeavesOpen) {
  const std::string path = Write(R"({"layers": [1, 3], "policy": "clamped", "distance": 512, "top_k": 8, "bias": -1.5,
                                     "decay": 0.5, "decay_beyond": 1024, "window": 128, "pinned": 4,
                                     "rules": [{"layer": 3, "top_k": [1, 2, 0], "bias": -2}]})");
  Parse("--top-k 16 --profile " + path);
  EXPECT_EQ(settings_.top_k, 16) << "the command line comes first";
  EXPECT_THAT(settings_.layers, ElementsAre(1, 3));
  EXPECT_EQ(settings_.policy, "clamped");
  EXPECT_FLOAT_EQ(settings_.distance, 512);
  EXPECT_FLOAT_EQ(settings_.memory_bias, -1.5f);
  EXPECT_FLOAT_EQ(settings_.decay, 0.5f);
  EXPECT_FLOAT_EQ(settings_.decay_beyond, 1024);
  EXPECT_EQ(settings_.window, 128);
  EXPECT_EQ(settings_.pinned, 4);
  ASSERT_EQ(settings_.rules.size(), 1u);
  EXPECT_EQ(settings_.rules[0].layer, 3);
  EXPECT_THAT(settings_.rules[0].top_k, ElementsAre(1, 2, 0));
  EXPECT_THAT(settings_.rules[0].memory_bias, ElementsAre(-2.0f));
  EXPECT_TRUE(settings_.rules[0].decay.empty());
}

TEST_F(ProfileTest, SettingsTextIsAProfile) {
  Parse("--layers 2,5 --policy window-start --top-k 7 --bias -0.5 --window 64");
  settings_.rules = {{.layer = 5, .top_k = {3}, .distance = {}, .memory_bias = {}, .decay = {0.5f, 1.0f}}};
  ModelSettings other;
  const CLI::App nothing_given;
  TakeSettings(SettingsText(settings_), "text", nothing_given, &other);
  EXPECT_EQ(SettingsText(other), SettingsText(settings_));
  EXPECT_EQ(other.rules, settings_.rules);
  EXPECT_NE(SettingsText(other), SettingsText(ModelSettings()));
}

TEST_F(ProfileTest, RefusesWithKeyAndReason) {
  ExpectRefused("{", "--profile: is not JSON");
  ExpectRefused("[1]", "--profile: expected a JSON object");
  ExpectRefused(R"({"topk": 3})", "unknown key topk");
  ExpectRefused(R"({"top_k": 0})", "top_k: expected an integer of 1 to");
  ExpectRefused(R"({"top_k": 2.5})", "top_k: expected an integer");
  ExpectRefused(R"({"policy": "far"})", "policy: expected one of as-stored, clamped, fixed, window-start, got \"far\"");
  ExpectRefused(R"({"decay": -1})", "decay: expected numbers of at least 0.0, got -1");
  ExpectRefused(R"({"distance": "near"})", "distance: expected numbers");
  ExpectRefused(R"({"rules": {"layer": 1}})", "rules: expected a list");
  ExpectRefused(R"({"rules": [{"top_k": 1}]})", "rules[0]: layer: is missing");
  ExpectRefused(R"({"rules": [{"layer": 1}, {"layer": 2, "k": 1}]})", "rules[1]: unknown key k");
  ExpectRefused(R"({"rules": [{"layer": 1, "top_k": [1.5]}]})", "rules[0]: top_k: expected integers");
  ExpectRefused(R"({"rules": [{"layer": 1, "bias": []}]})", "rules[0]: bias: expected a number or a list");
}

}  // namespace
}  // namespace mneme::llama
