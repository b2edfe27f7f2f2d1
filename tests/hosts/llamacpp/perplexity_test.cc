// SPDX-License-Identifier: Apache-2.0
// `mneme-llama perplexity`: the losses of every token, and what llama.cpp alone predicts.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/main/text.h"
#include "nlohmann/json.hpp"
#include "tests/hosts/llamacpp/program.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kLast = 500;
constexpr int64_t kScore = 101;
constexpr size_t kFirst = kLast - kScore;  // the token that is given to the scoring and not scored

struct Line {
  int64_t row = 0;
  int64_t position = 0;
  llama_token token = 0;
  double nll = 0.0;
};

class PerplexityTest : public ::testing::Test {
 protected:
  // Scores the last tokens of the text; the report, with the losses in losses_.
  nlohmann::json Score(const std::string& arguments, const std::string& model = SmolPath()) {
    const ProgramResult result = RunProgram("perplexity --json --window 64 --threads 2 --model '" + model + "'" +
                                                TextOptions() + " --last " + std::to_string(kLast) + " --score " +
                                                std::to_string(kScore) + " --losses '" + losses_ + "' " + arguments,
                                            " 2>/dev/null");
    EXPECT_EQ(result.exit_code, 0) << arguments;
    return nlohmann::json::parse(result.output);
  }

  std::vector<Line> Losses() const {
    std::ifstream file(losses_);
    std::string header;
    std::getline(file, header);
    EXPECT_EQ(header, "row\tposition\ttoken\tnll");
    std::vector<Line> lines;
    for (Line line; file >> line.row >> line.position >> line.token >> line.nll;) lines.push_back(line);
    EXPECT_TRUE(file.eof());
    return lines;
  }

  static std::vector<llama_token> Tokens(const llama_model* model) {
    TextSettings text;
    text.files = {MNEME_TEST_TEXT};
    text.bytes = 20000;
    text.last = kLast;
    return ReadText(model, text);
  }

  const TemporaryFolder folder_;
  const std::string losses_ = folder_.path() + "/losses.tsv";
};

// The loss of tokens[position] after the given tokens, by llama.cpp alone.
double LossAfter(llama_model* model, std::span<const llama_token> before, llama_token token) {
  const ContextPtr context = PlainContext(model, 512, 512);
  DecodePlain(context.get(), before);
  return NegativeLogLikelihood(PlainLogits(context.get(), static_cast<int32_t>(before.size()) - 1), token);
}

TEST_F(PerplexityTest, LossesOfEveryToken) {
  const nlohmann::json report = Score("--memory-tokens 16,64");
  const std::vector<Line> lines = Losses();
  const std::vector<llama_token> tokens = Tokens(Smol());
  ASSERT_EQ(tokens.size(), kLast);
  ASSERT_EQ(lines.size(), 2 * (kScore - 1));
  double sums[2] = {};
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].row, static_cast<int64_t>(i) / (kScore - 1));
    EXPECT_EQ(lines[i].position, static_cast<int64_t>(kFirst + 1 + i % (kScore - 1)));
    EXPECT_EQ(lines[i].token, tokens[static_cast<size_t>(lines[i].position)]);
    sums[lines[i].row] += lines[i].nll;
  }
  for (size_t row = 0; row < 2; ++row) {
    EXPECT_EQ(report[row]["scored"], kScore - 1);
    EXPECT_NEAR(report[row]["nll"].get<double>(), sums[row] / (kScore - 1), 1e-7);
  }
  EXPECT_NE(sums[0], sums[1]);
}

TEST_F(PerplexityTest, TheReportHasTheSettings) {
  const nlohmann::json settings = Score("--memory-tokens 16 --decay 0.5 --layers 3,4 --top-k 8")[0]["settings"];
  EXPECT_EQ(settings["model"], SmolPath());
  EXPECT_EQ(settings["threads"], 2);
  EXPECT_EQ(settings["layers"], nlohmann::json({3, 4}));
  EXPECT_EQ(settings["decay"], 0.5);
  EXPECT_EQ(settings["top_k"], 8);
  EXPECT_EQ(settings["window"], 64);
  EXPECT_EQ(settings["last"], kLast);
  EXPECT_EQ(settings["score"], kScore);
  EXPECT_EQ(settings["text"], nlohmann::json({MNEME_TEST_TEXT}));
  EXPECT_THAT(settings["version"].get<std::string>(), HasSubstr("0."));
}

// Two ways to keep the sinks and a window: llama.cpp's cache, and a memory of the pinned tokens.
TEST_F(PerplexityTest, AMemoryOfThePinnedTokensIsTheBaseline) {
  const Dequantised smol(SmolPath());
  const nlohmann::json report = Score("--memory-tokens 16 --baseline --policy as-stored", smol.path());
  ASSERT_EQ(report.size(), 2);
  EXPECT_EQ(report[1]["memory"], "baseline");
  EXPECT_NEAR(report[0]["nll"].get<double>(), report[1]["nll"].get<double>(), 5e-3);
  const std::vector<Line> lines = Losses();
  ASSERT_EQ(lines.size(), 2 * (kScore - 1));
  double greatest = 0.0;
  for (size_t i = 0; i + 1 < kScore; ++i) {
    greatest = std::max(greatest, std::abs(lines[i].nll - lines[i + kScore - 1].nll));
  }
  EXPECT_LE(greatest, 0.2);
  // The window is part of it: with one that holds the whole text the text is predicted better.
  EXPECT_GT(report[1]["nll"].get<double>(), Score("--native 2048", smol.path())[0]["nll"].get<double>() + 0.01);
}

TEST_F(PerplexityTest, ANativeContextThatHoldsTheText) {
  const Dequantised smol(SmolPath());
  const nlohmann::json report = Score("--native 1024", smol.path());
  ASSERT_EQ(report.size(), 1);
  EXPECT_EQ(report[0]["memory"], "native 1024");
  EXPECT_EQ(report[0]["scored"], kScore - 1);
  const std::vector<llama_token> tokens = Tokens(Smol());
  const std::vector<Line> lines = Losses();
  for (const size_t at : {size_t{0}, size_t{50}, lines.size() - 1}) {
    const auto position = static_cast<size_t>(lines[at].position);
    EXPECT_NEAR(lines[at].nll, LossAfter(smol.model(), std::span(tokens).first(position), tokens[position]), 0.02)
        << position;
  }
}

// Contexts of 64 tokens: stretches of 16 after 47, or after 46 and Gemma's begin-of-text token.
TEST_F(PerplexityTest, ShortNativeContextsAreDecodedAnew) {
  const Dequantised smol(SmolPath());
  const Dequantised gemma(GemmaPath());
  struct Case {
    const Dequantised& weights;
    size_t before;
  };
  for (const Case& one : {Case{smol, 47}, Case{gemma, 46}}) {
    SCOPED_TRACE(one.weights.path());
    Score("--native 64", one.weights.path());
    const std::vector<llama_token> tokens = Tokens(one.weights.model());
    const std::vector<Line> lines = Losses();
    ASSERT_EQ(lines.size(), static_cast<size_t>(kScore - 1));
    for (const size_t at : {size_t{0}, size_t{15}, size_t{16}, size_t{99}}) {
      const size_t position = kFirst + 1 + at;
      EXPECT_EQ(lines[at].position, static_cast<int64_t>(position));
      EXPECT_EQ(lines[at].token, tokens[position]);
      const size_t begin = kFirst + at / 16 * 16 - one.before;
      std::vector<llama_token> before(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                      tokens.begin() + static_cast<std::ptrdiff_t>(position));
      if (one.before == 46) before.insert(before.begin(), tokens.front());
      EXPECT_NEAR(lines[at].nll, LossAfter(one.weights.model(), before, tokens[position]), 0.02) << position;
    }
  }
}

TEST_F(PerplexityTest, Refusals) {
  const std::string perplexity = "perplexity" + SmolOptions() + TextOptions();
  for (const std::string option : {"--native 8", "--baseline"}) {
    const ProgramResult result = RunProgram(perplexity + " --store '" + folder_.path() + "' --memories m " + option);
    EXPECT_EQ(result.exit_code, 2) << option;
    EXPECT_THAT(result.output, HasSubstr("has no effect with --store"));
  }
  EXPECT_EQ(RunProgram(perplexity + " --native 7").exit_code, 2);
  const ProgramResult unwritable = RunProgram(perplexity + " --losses /nowhere/losses");
  EXPECT_EQ(unwritable.exit_code, 1);
  EXPECT_THAT(unwritable.output, HasSubstr("--losses: cannot write /nowhere/losses"));
  // A score that fails leaves no file behind.
  EXPECT_NE(RunProgram(perplexity + " --last 100 --score 200 --losses '" + losses_ + "'").exit_code, 0);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

}  // namespace
}  // namespace mneme::llama
