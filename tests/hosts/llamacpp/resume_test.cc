// SPDX-License-Identifier: Apache-2.0
// A memory outlives the process: what another process finds in the store predicts what this one would have predicted.
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <iostream>
#include <string>

#include "gtest/gtest.h"
#include "hosts/llamacpp/main/block_reader.h"
#include "nlohmann/json.hpp"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

constexpr int32_t kWindow = 128;
const std::string kWindowOption = " --window " + std::to_string(kWindow);
constexpr int64_t kIngested = 1024;
constexpr int64_t kScored = 512;  // more than the window: what is scored is retrieved, too

// Runs mneme-llama and returns what it prints.
nlohmann::json RunProgram(const std::string& arguments) {
  const std::string command = "'" MNEME_TEST_PROGRAM "' " + arguments + " --json --threads 2 --model '" + SmolPath() +
                              "' --text '" MNEME_TEST_TEXT "' --bytes 100000 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  std::string output;
  std::array<char, 4096> buffer;
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) output += buffer.data();
  const int status = pclose(pipe);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << command << "\n" << output;
  return nlohmann::json::parse(output, nullptr, /*allow_exceptions=*/false);
}

ModelSettings Settings() {
  ModelSettings settings = SettingsFor(SmolPath());
  settings.window = kWindow;
  return settings;
}

// Takes the text in; then, in a reopened store if `reopen`, scores what follows.
double NllInThisProcess(const std::string& folder, bool reopen) {
  Session session(Smol(), Settings());
  const std::vector<llama_token> tokens = TextTokens(Smol(), 0, kIngested + kScored);
  const auto first = std::span(tokens).first(kIngested);
  const auto rest = std::span(tokens).subspan(kIngested);
  {
    const Store store(folder, 2);
    const Memory memory(store, "m", session, /*create=*/true, 512, "f16");
    Ingest(session, memory, first, "m", MNEME_DURABILITY_BUFFERED, nullptr);
    if (!reopen) {
      const Score score = ScoreText(session, rest, "m");
      session.Detach(0);
      return score.nll;
    }
    session.Detach(0);
  }
  const Store store(folder, 2);
  const Memory memory(store, "m", session, /*create=*/false, 0, "");
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  EXPECT_EQ(mneme_llama_resume(session.adapter(), 0, kWindow, nullptr, nullptr), MNEME_OK) << mneme_llama_last_error();
  const Score score = ScoreText(session, rest, "m");
  session.Detach(0);
  return score.nll;
}

TEST(ResumeTest, AnotherProcessPredictsTheSame) {
  const TemporaryFolder other;
  const std::string store = " --store '" + other.path() + "/store'";
  const nlohmann::json ingested =
      RunProgram("ingest --memory m --memory-tokens 512 --tokens " + std::to_string(kIngested) + kWindowOption + store);
  EXPECT_EQ(ingested["next_token"], kIngested);
  EXPECT_EQ(ingested["tokens"], 512 + kWindow);
  const std::string score = "perplexity --memories m --score " + std::to_string(kScored) + kWindowOption + store;
  const nlohmann::json first = RunProgram(score);
  const nlohmann::json second = RunProgram(score);
  const TemporaryFolder own;
  const double here = NllInThisProcess(own.path(), /*reopen=*/true);
  EXPECT_EQ(first[0]["scored"], kScored - 1);
  EXPECT_EQ(first[0]["nll"], second[0]["nll"]) << "scoring changed the store";
  EXPECT_DOUBLE_EQ(first[0]["nll"].get<double>(), here);

  // The refilled window was decoded with less context than the first time; that is all that is lost.
  const TemporaryFolder uninterrupted;
  const double never_ended = NllInThisProcess(uninterrupted.path(), /*reopen=*/false);
  std::cout << "nll " << here << " after reopening, " << never_ended << " without ever closing\n";
  EXPECT_NEAR(here, never_ended, 0.05);
}

TEST(ResumeTest, AnIngestGoesOnWhereItWas) {
  const TemporaryFolder folder;
  const std::string store = " --store '" + folder.path() + "/store'";
  RunProgram("ingest --memory m --tokens 300" + kWindowOption + store);
  const nlohmann::json rest = RunProgram("ingest --memory m --tokens 500" + kWindowOption + store);
  EXPECT_EQ(rest["ingested"], 200);
  EXPECT_EQ(rest["next_token"], 500);
  const nlohmann::json checked = RunProgram("check --memory m" + store);
  EXPECT_EQ(checked["next_token"], 500);
  EXPECT_EQ(checked["damaged_values"], 0);
}

}  // namespace
}  // namespace mneme::llama
