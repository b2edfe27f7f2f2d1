// SPDX-License-Identifier: Apache-2.0
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/cli/testing.h"

namespace mneme::cli {
namespace {

using ::testing::HasSubstr;

TEST(BackupTest, BackUpListAndRestore) {
  const TempFolder folder;
  const std::string backups = folder.path() + "/backups", restored = folder.path() + "/restored";
  Writer(folder.store()).Create("chat", 1300);
  const nlohmann::json first = RunCli({"backup", folder.store(), backups, "--json"}).Json();
  EXPECT_EQ(first["backup"], 1);
  EXPECT_GE(first["bytes"], 1300 * Writer::kRowBytes);
  EXPECT_GE(first["copied_bytes"], first["bytes"]);
  Writer(folder.store()).Create("notes", 300);
  const CliResult second = RunCli({"backup", folder.store(), backups});
  EXPECT_EQ(second.exit_code, 0) << second.err;
  EXPECT_THAT(second.out, HasSubstr("backup 2: "));
  const nlohmann::json list = RunCli({"backups", backups, "--json"}).Json()["backups"];
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[1]["backup"], 2);
  EXPECT_EQ(list[1]["damaged"], false);
  EXPECT_GT(list[1]["bytes"], list[0]["bytes"]);
  const CliResult human = RunCli({"backups", backups});
  EXPECT_EQ(human.exit_code, 0);
  EXPECT_THAT(human.out, HasSubstr("BACKUP"));

  EXPECT_EQ(RunCli({"restore", backups, restored, "--backup", "1", "--json"}).Json()["restored"], true);
  EXPECT_EQ(RunCli({"verify", restored, "--json"}).Json()["memories"], 1);
  const CliResult again = RunCli({"restore", backups, restored});
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_THAT(again.err, HasSubstr("mneme: ALREADY_EXISTS: path: "));
  const CliResult newest = RunCli({"restore", backups, restored + "2"});
  EXPECT_EQ(newest.exit_code, 0) << newest.err;
  EXPECT_THAT(newest.out, HasSubstr(": restored\n"));
  EXPECT_EQ(RunCli({"verify", restored + "2", "--json"}).Json()["memories"], 2);
}

TEST(BackupTest, DamageAndWhatIsMissing) {
  const TempFolder folder;
  const std::string backups = folder.path() + "/backups";
  EXPECT_THAT(RunCli({"backups", backups}).err, HasSubstr("NOT_FOUND"));
  EXPECT_THAT(RunCli({"restore", backups, folder.path() + "/restored"}).err, HasSubstr("NOT_FOUND"));
  {
    Writer writer(folder.store());
    writer.Create("chat", 300);
    EXPECT_THAT(RunCli({"backup", folder.store(), backups}).err, HasSubstr("FAILED_PRECONDITION"));
  }
  EXPECT_EQ(RunCli({"backup", folder.store(), backups, "--keep", "1"}).exit_code, 0);
  std::filesystem::remove_all(backups + "/private/1");
  EXPECT_EQ(RunCli({"backups", backups, "--json"}).Json()["backups"][0]["damaged"], true);
  EXPECT_THAT(RunCli({"backups", backups}).out, HasSubstr("damaged"));
  const CliResult restored = RunCli({"restore", backups, folder.path() + "/restored"});
  EXPECT_EQ(restored.exit_code, 1);
  EXPECT_THAT(restored.err, HasSubstr("DATA_LOSS"));
  EXPECT_FALSE(std::filesystem::exists(folder.path() + "/restored"));
}

}  // namespace
}  // namespace mneme::cli
