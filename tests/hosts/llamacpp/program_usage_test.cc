// SPDX-License-Identifier: Apache-2.0
// What mneme-llama refuses, and how it ends.
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme.h"
#include "tests/hosts/llamacpp/program.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(ProgramUsageTest, VersionIsTheLibrarys) {
  const ProgramResult result = RunProgram("--version");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.output, std::string(mneme_version()) + "\n");
}

TEST(ProgramUsageTest, OutputThatCannotBeWritten) {
  const ProgramResult version = RunProgram("--version", " 2>&1 >/dev/full");
  EXPECT_EQ(version.exit_code, 1);
  EXPECT_THAT(version.output, HasSubstr("cannot write to the standard output"));
  const ProgramResult answer = RunProgram("generate --prompt hello --predict 1" + SmolOptions(), " 2>&1 >/dev/full");
  EXPECT_EQ(answer.exit_code, 1);
  EXPECT_THAT(answer.output, HasSubstr("cannot write to the standard output"));
}

TEST(ProgramUsageTest, WrongUsageEndsWith2) {
  const TemporaryFolder folder;
  const std::string store = " --store '" + folder.path() + "/store'";
  const std::string generate = "generate --prompt p --model '" + SmolPath() + "'";
  const std::string ingest = "ingest --memory m" + store + SmolOptions() + TextOptions();
  const std::string perplexity = "perplexity" + SmolOptions() + TextOptions();
  const std::string overhead = "overhead" + SmolOptions() + TextOptions();
  const std::string wrong[] = {
      "",
      "fly",
      "generate --prompt p",
      generate + " --wings",
      generate + store,
      generate + " --memory m",
      generate + " --resume",
      generate + " --save",
      generate + " --stored-type f32 --memory m" + store,
      generate + " --temperature nan",
      generate + " --temperature -1",
      generate + " --temperature inf",
      generate + " --seed 7",
      generate + " --predict -1",
      generate + " --threads -1",
      generate + " --threads 1000000",
      generate + " --top-k 0",
      generate + " --window 0",
      generate + " --pinned -1",
      generate + " --bias nan",
      generate + " --decay -1",
      generate + " --decay-beyond 5",
      generate + " --distance -1",
      generate + " --distance 5 --policy as-stored",
      generate + " --top-k 5 --fusion local-only",
      generate + " --bias 1 --fusion memory-only",
      ingest + " --last -1",
      ingest + " --tokens -1",
      ingest + " --memory-tokens -1",
      ingest + " --bytes -1",
      perplexity + store,
      perplexity + " --memories m",
      perplexity + store + " --memories m --memory-tokens 16",
      perplexity + store + " --memories m --stored-type f32",
      perplexity + " --score 1",
      perplexity + " --score -5",
      perplexity + " --memory-tokens -1",
      "check --memory m --stored-type f32" + store + SmolOptions() + TextOptions(),
      "check --memory m --top-k 5" + store + SmolOptions() + TextOptions(),
      overhead + " --rounds 0",
      overhead + " --decay-beyond 5",
      "speed --decay-beyond 5" + SmolOptions() + TextOptions(),
      "speed --past 1" + SmolOptions() + TextOptions(),
      "record --output /dev/null --pinned 9 --window 9" + SmolOptions() + TextOptions(),
      "record --output /dev/null --distance nan" + SmolOptions() + TextOptions(),
      "record --output /dev/null --layers 1000" + SmolOptions() + TextOptions(),
  };
  for (const std::string& arguments : wrong) {
    const ProgramResult result = RunProgram(arguments);
    EXPECT_EQ(result.exit_code, 2) << arguments << "\n" << result.output;
    EXPECT_FALSE(result.output.empty()) << arguments;
  }
  EXPECT_FALSE(std::filesystem::exists(folder.path() + "/store"));
}

TEST(ProgramUsageTest, OptionsForNewMemoriesDoNotChangeOneThatIsThere) {
  const TemporaryFolder folder;
  const std::string ingest =
      "ingest --memory m --window 64 --store '" + folder.path() + "/store'" + SmolOptions() + TextOptions();
  ASSERT_EQ(RunProgram(ingest + " --tokens 64 --memory-tokens 100").exit_code, 0);
  const auto expect_refused = [&](const std::string& option) {
    const ProgramResult result = RunProgram(ingest + " --tokens 64 " + option);
    EXPECT_EQ(result.exit_code, 2) << result.output;
    EXPECT_THAT(result.output, HasSubstr("is for new memories")) << option;
  };
  expect_refused("--memory-tokens 200");
  expect_refused("--stored-type i8");
  expect_refused("--pinned 3");
  const ProgramResult too_long = RunProgram(ingest + " --tokens 1000000");
  EXPECT_EQ(too_long.exit_code, 2);
  EXPECT_THAT(too_long.output, HasSubstr("--tokens: the text has only"));
  const ProgramResult unwritable = RunProgram(ingest + " --ack-file /nowhere/acknowledged");
  EXPECT_EQ(unwritable.exit_code, 1);
  EXPECT_THAT(unwritable.output, HasSubstr("--ack-file: cannot write"));
  // A killed run is repeated as it was. There is nothing left to do, and no share of no time.
  const ProgramResult again = RunProgram(ingest + " --tokens 64 --memory-tokens 100 --stored-type f16 --pinned 16");
  EXPECT_EQ(again.exit_code, 0) << again.output;
  EXPECT_THAT(again.output, HasSubstr("m: 0 tokens taken in"));
  EXPECT_THAT(again.output, Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace mneme::llama
