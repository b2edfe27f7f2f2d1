// SPDX-License-Identifier: Apache-2.0
// `mneme-llama speed`: every variant runs after every past that it can have, and says how fast.
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Ended {
  int code;
  std::string output;
};

Ended RunSpeed(const std::string& arguments, const std::string& to) {
  const std::string command = "'" MNEME_TEST_PROGRAM "' speed --threads 2 --window 64 --model '" + SmolPath() +
                              "' --text '" MNEME_TEST_TEXT "' --bytes 60000 " + arguments + to;
  FILE* pipe = popen(command.c_str(), "r");
  Ended ended{-1, ""};
  std::array<char, 4096> buffer;
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) ended.output += buffer.data();
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ended.code = WEXITSTATUS(status);
  return ended;
}

std::vector<std::string> NamesOf(const nlohmann::json& past) {
  std::vector<std::string> names;
  for (const auto& variant : past.at("variants")) names.push_back(variant.at("name"));
  return names;
}

// The second past is one that the model reads in part and the third one that native context cannot have.
TEST(SpeedTest, EveryVariantRuns) {
  const Ended ended = RunSpeed("--tokens 3 --past 256,100,9000 --read 200 --json", " 2>/dev/null");
  ASSERT_EQ(ended.code, 0) << ended.output;
  const nlohmann::json report = nlohmann::json::parse(ended.output);
  EXPECT_EQ(report.at("window"), 64);
  EXPECT_EQ(report.at("top_k"), 32);
  EXPECT_EQ(report.at("tokens"), 3);
  EXPECT_EQ(report.at("read_tokens"), 200);
  EXPECT_EQ(report.at("middle_layers"), nlohmann::json({13, 14, 15}));
  EXPECT_EQ(report.at("engine_threads"), "shared");
  const nlohmann::json& pasts = report.at("pasts");
  ASSERT_EQ(pasts.size(), 3u);
  EXPECT_EQ(pasts[0].at("past_tokens"), 100);
  EXPECT_EQ(pasts[1].at("past_tokens"), 256);
  EXPECT_EQ(pasts[2].at("past_tokens"), 9000);
  for (size_t i : {0, 1}) {
    EXPECT_THAT(NamesOf(pasts[i]),
                ElementsAre("window alone", "memory, middle layers", "memory, all layers", "native context"));
  }
  EXPECT_THAT(NamesOf(pasts[2]), ElementsAre("window alone", "memory, middle layers", "memory, all layers"));
  for (const auto& past : pasts) {
    const double alone = past.at("variants")[0].at("median_token_seconds");
    for (const auto& variant : past.at("variants")) {
      const double median = variant.at("median_token_seconds"), best = variant.at("best_token_seconds");
      EXPECT_GT(best, 0.0) << variant;
      EXPECT_LE(best, median) << variant;
      EXPECT_DOUBLE_EQ(variant.at("tokens_per_second"), 1.0 / median) << variant;
      EXPECT_DOUBLE_EQ(variant.at("times_window_alone"), median / alone) << variant;
      const bool remembers = variant.at("layers_with_memory") > 0;
      for (const char* part : {"attend_token_seconds", "append_token_seconds", "capture_token_seconds"}) {
        if (remembers) {
          EXPECT_GT(variant.at(part), 0.0) << part;
        } else {
          EXPECT_EQ(variant.at(part), 0.0) << part;
        }
      }
    }
    EXPECT_EQ(past.at("variants")[1].at("layers_with_memory"), 3);
    EXPECT_EQ(past.at("variants")[2].at("layers_with_memory"), 30);
  }
}

TEST(SpeedTest, VariantsAndThreadsCanBeChosen) {
  const Ended ended = RunSpeed("--tokens 2 --past 100 --variants middle --engine-threads own --layers 1,2,3,4,5 --json",
                               " 2>/dev/null");
  ASSERT_EQ(ended.code, 0) << ended.output;
  const nlohmann::json report = nlohmann::json::parse(ended.output);
  EXPECT_EQ(report.at("middle_layers"), nlohmann::json({2, 3, 4}));
  EXPECT_EQ(report.at("engine_threads"), "own");
  EXPECT_THAT(NamesOf(report.at("pasts")[0]), ElementsAre("window alone", "memory, middle layers"));
}

TEST(SpeedTest, PrintsATable) {
  const Ended ended = RunSpeed("--tokens 2 --past 100", " 2>/dev/null");
  ASSERT_EQ(ended.code, 0) << ended.output;
  for (const char* part : {"a past of 100 tokens", "tokens/s", "window alone", "memory, middle layers",
                           "memory, all layers", "native context"}) {
    EXPECT_THAT(ended.output, HasSubstr(part));
  }
}

TEST(SpeedTest, SaysWhatIsWrong) {
  const auto expect = [](const std::string& arguments, const std::string& message) {
    const Ended ended = RunSpeed(arguments, " 2>&1");
    EXPECT_NE(ended.code, 0) << arguments;
    EXPECT_THAT(ended.output, HasSubstr(message)) << arguments;
  };
  expect("--past 63", "--past: must be at least --window, which is 64; got 63");
  expect("--past 100 --tokens 65", "--tokens: must be at most --window, which is 64; got 65");
  expect("--tokens 3 --past 1000000", "--past and --tokens take 1000003 tokens, the text has ");
  expect("--past 0", "--past");
  expect("--past 100 --read 0", "--read");
  expect("--past 100 --variants some", "--variants");
  expect("--past 100 --engine-threads few", "--engine-threads");
}

}  // namespace
}  // namespace mneme::llama
