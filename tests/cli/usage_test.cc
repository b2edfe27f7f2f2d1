// SPDX-License-Identifier: Apache-2.0
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/cli/testing.h"

namespace mneme::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TEST(UsageTest, VersionIsTheLibrarys) {
  const CliResult result = RunCli({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, std::string(mneme_version()) + "\n");
}

TEST(UsageTest, HelpNamesEveryCommand) {
  const CliResult result = RunCli({"--help"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* command : {"list", "info", "verify", "maintain", "evict", "drop", "stats", "backup", "restore"}) {
    EXPECT_THAT(result.out, HasSubstr(command));
    const CliResult help = RunCli({command, "--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, HasSubstr("STORE"));
  }
}

TEST(UsageTest, WrongUsage) {
  const TempFolder folder;
  const std::string store = folder.store();
  const std::vector<std::string> wrong[] = {
      {},
      {"fly", store},
      {"list"},
      {"list", store, "more"},
      {"list", store, "--wings"},
      {"info", store},
      {"info", store, "a", "b"},
      {"maintain", store},
      {"maintain", store, "a", "--all"},
      {"maintain", store, "--all", "--threads", "0"},
      {"evict", store, "a"},
      {"evict", store, "a", "--keep", "-1"},
      {"evict", store, "a", "--keep", "few"},
      {"drop", store},
      {"backup", store},
      {"backup", store, "backups", "--keep", "0"},
      {"backups"},
      {"restore", "backups"},
      {"restore", "backups", store, "--backup", "0"},
  };
  for (const auto& arguments : wrong) {
    const CliResult result = RunCli(arguments);
    EXPECT_EQ(result.exit_code, 2) << ::testing::PrintToString(arguments);
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, Not(IsEmpty()));
    EXPECT_FALSE(std::filesystem::exists(store));
  }
}

TEST(UsageTest, OutputThatCannotBeWritten) {
  std::string command = std::string(MNEME_CLI_PATH) + " --version >/dev/full 2>/dev/null";
  EXPECT_NE(system(command.c_str()), 0);
}

}  // namespace
}  // namespace mneme::cli
