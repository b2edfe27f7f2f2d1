// SPDX-License-Identifier: Apache-2.0
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/cli/testing.h"

namespace mneme::cli {
namespace {

using ::testing::HasSubstr;

TEST(ExchangeTest, AMemoryGoesFromAStoreToAnother) {
  const TempFolder folder;
  {
    Writer writer(folder.store());
    writer.Create("chat", 300);
  }
  const std::string file = folder.path() + "/chat.safetensors", other = folder.path() + "/other";
  const CliResult exported = RunCli({"export", folder.store(), "chat", file});
  EXPECT_EQ(exported.exit_code, 0) << exported.err;
  EXPECT_THAT(exported.out, HasSubstr("chat: 300 tokens"));
  const CliResult again = RunCli({"export", folder.store(), "chat", file});
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_THAT(again.err, HasSubstr("ALREADY_EXISTS"));
  EXPECT_EQ(RunCli({"export", folder.store(), "chat", file, "--overwrite", "--json"}).Json()["tokens"], 300);

  EXPECT_EQ(RunCli({"import", other, file}).exit_code, 1) << "no store is made unless it is asked for";
  const CliResult imported = RunCli({"import", other, file, "--create", "--json"});
  EXPECT_EQ(imported.exit_code, 0) << imported.err;
  EXPECT_EQ(imported.Json()["name"], "chat");
  EXPECT_THAT(RunCli({"import", other, file, "second"}).out, HasSubstr("second: 300 tokens"));
  EXPECT_EQ(RunCli({"list", other, "--json"}).Json()["memories"].size(), 2u);
  EXPECT_EQ(RunCli({"verify", other}).exit_code, 0);
  EXPECT_EQ(RunCli({"import", other, file}).exit_code, 1);
  EXPECT_EQ(RunCli({"import", other}).exit_code, 2);
  EXPECT_EQ(RunCli({"export", other, "chat"}).exit_code, 2);
}

}  // namespace
}  // namespace mneme::cli
