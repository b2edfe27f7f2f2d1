// SPDX-License-Identifier: Apache-2.0
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "cli/format.h"
#include "tests/cli/testing.h"

namespace mneme::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> Names(const std::string& store) {
  std::vector<std::string> names;
  const nlohmann::json list = RunCli({"list", store, "--json"}).Json();
  for (const auto& memory : list["memories"]) names.push_back(memory["name"]);
  return names;
}

TEST(ChangeTest, Maintain) {
  const TempFolder folder;
  {
    Writer writer(folder.store());
    writer.Create("chat", 1300, "flat");
    writer.Create("notes", 300);
  }
  const CliResult one = RunCli({"maintain", folder.store(), "chat", "--json"});
  EXPECT_EQ(one.exit_code, 0) << one.err;
  const nlohmann::json memories = one.Json()["memories"];
  ASSERT_EQ(memories.size(), 1u);
  EXPECT_EQ(memories[0]["name"], "chat");
  EXPECT_EQ(memories[0]["tokens"], 1300);
  EXPECT_GE(memories[0]["indexes"], 1);
  EXPECT_EQ(memories[0]["indexes"], RunCli({"info", folder.store(), "chat", "--json"}).Json()["indexes"]);

  const CliResult all = RunCli({"maintain", folder.store(), "--all", "--threads", "2"});
  EXPECT_EQ(all.exit_code, 0) << all.err;
  EXPECT_THAT(all.out, HasSubstr("chat: "));
  EXPECT_THAT(all.out, HasSubstr("notes: "));
  EXPECT_THAT(all.err, IsEmpty());
}

TEST(ChangeTest, MaintainGoesOnAfterAFailure) {
  const TempFolder folder;
  {
    Writer writer(folder.store());
    writer.Create("chat", 300);
  }
  const CliResult result = RunCli({"maintain", folder.store(), "missing", "chat"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("mneme: missing: NOT_FOUND: "));
  EXPECT_THAT(result.out, HasSubstr("chat: "));
}

TEST(ChangeTest, Evict) {
  const TempFolder folder;
  int64_t token_bytes = 0;
  {
    Writer writer(folder.store());
    writer.Create("chat", 1300);
    token_bytes = writer.Info("chat").bytes / 1300;
  }
  const CliResult json = RunCli({"evict", folder.store(), "chat", "--keep", "1000", "--json"});
  EXPECT_EQ(json.exit_code, 0) << json.err;
  EXPECT_EQ(
      json.Json(),
      (nlohmann::json{
          {"name", "chat"}, {"evicted", 300}, {"tokens", 1000}, {"first_kept", 300}, {"bytes", 1000 * token_bytes}}));
  EXPECT_EQ(RunCli({"info", folder.store(), "chat", "--json"}).Json()["tokens"], 1000);

  EXPECT_EQ(RunCli({"evict", folder.store(), "chat", "--keep", "1000"}).out,
            "chat: evicted 0 tokens; 1,000 (" + HumanBytes(1000 * token_bytes) + ") left\n");
  const CliResult all = RunCli({"evict", folder.store(), "chat", "--keep=0"});
  EXPECT_EQ(all.exit_code, 0) << all.err;
  EXPECT_EQ(all.out, "chat: evicted 1,000 tokens; 0 (0 B) left\n");
}

TEST(ChangeTest, CompactErasesWhatWasDropped) {
  const TempFolder folder;
  {
    Writer writer(folder.store());
    writer.Create("chat", 300);
    writer.Create("notes", 300);
  }
  ASSERT_EQ(RunCli({"drop", folder.store(), "chat", "--yes"}).exit_code, 0);
  const CliResult compacted = RunCli({"compact", folder.store()});
  EXPECT_EQ(compacted.exit_code, 0) << compacted.err;
  EXPECT_THAT(compacted.out, HasSubstr(" on disk ("));
  const nlohmann::json json = RunCli({"compact", folder.store(), "--json"}).Json();
  EXPECT_GT(json["disk_bytes"], 0);
  EXPECT_GT(json["disk_bytes_before"], 0);
  EXPECT_EQ(RunCli({"verify", folder.store()}).exit_code, 0);
  EXPECT_EQ(Names(folder.store()), std::vector<std::string>{"notes"});
  EXPECT_EQ(RunCli({"compact", folder.path() + "/none"}).exit_code, 1);
}

TEST(ChangeTest, Drop) {
  const TempFolder folder;
  {
    Writer writer(folder.store());
    writer.Create("chat", 300);
    writer.Create("notes", 300);
  }
  const CliResult unasked = RunCli({"drop", folder.store(), "chat"});
  EXPECT_EQ(unasked.exit_code, 2);
  EXPECT_THAT(unasked.err, HasSubstr("--yes"));
  EXPECT_EQ(Names(folder.store()).size(), 2u);

  const CliResult dropped = RunCli({"drop", folder.store(), "chat", "--yes"});
  EXPECT_EQ(dropped.exit_code, 0) << dropped.err;
  EXPECT_EQ(dropped.out, "chat: dropped\n");
  EXPECT_EQ(RunCli({"drop", folder.store(), "notes", "--yes", "--json"}).Json(),
            (nlohmann::json{{"name", "notes"}, {"dropped", true}}));
  EXPECT_THAT(Names(folder.store()), IsEmpty());

  const CliResult again = RunCli({"drop", folder.store(), "chat", "--yes"});
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_THAT(again.err, HasSubstr("NOT_FOUND"));
}

TEST(ChangeTest, DropTakesSeveralNamesOrNone) {
  const TempFolder folder;
  {
    Writer writer(folder.store());
    for (const char* name : {"a", "b", "c", "d", "e"}) writer.Create(name, 20);
  }
  // One that is not there: none is dropped.
  const CliResult refused = RunCli({"drop", folder.store(), "a", "missing", "b", "--yes"});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("missing"));
  EXPECT_THAT(refused.out, IsEmpty());
  EXPECT_EQ(Names(folder.store()), (std::vector<std::string>{"a", "b", "c", "d", "e"}));

  const CliResult dropped = RunCli({"drop", folder.store(), "a", "b", "c", "--yes"});
  EXPECT_EQ(dropped.exit_code, 0) << dropped.err;
  EXPECT_EQ(dropped.out, "a: dropped\nb: dropped\nc: dropped\n");
  EXPECT_EQ(Names(folder.store()), (std::vector<std::string>{"d", "e"}));
  EXPECT_EQ(RunCli({"drop", folder.store(), "d", "e", "--yes", "--json"}).Json(),
            (nlohmann::json{{"names", {"d", "e"}}, {"dropped", true}}));
  EXPECT_EQ(Names(folder.store()), std::vector<std::string>());
}

TEST(ChangeTest, DropAsksOnATerminal) {
  if (const std::string error = TerminalError(); !error.empty()) GTEST_SKIP() << "no pseudo-terminal: " << error;
  const TempFolder folder;
  {
    Writer writer(folder.store());
    writer.Create("chat", 300);
  }
  for (const char* answer : {"n\n", "\n", "yesterday\n", "\x04"}) {
    const CliResult kept = RunCliOnTerminal({"drop", folder.store(), "chat"}, answer);
    EXPECT_EQ(kept.exit_code, 1) << kept.out;
    EXPECT_THAT(kept.out, HasSubstr("Drop memory chat (300 tokens, "));
    EXPECT_THAT(kept.out, HasSubstr("for good? [y/N] "));
    EXPECT_THAT(kept.out, HasSubstr("nothing was dropped"));
    EXPECT_THAT(Names(folder.store()), ::testing::ElementsAre("chat"));
  }
  EXPECT_THAT(RunCliOnTerminal({"drop", folder.store(), "missing"}, "y\n").out, HasSubstr("NOT_FOUND"));
  const CliResult dropped = RunCliOnTerminal({"drop", folder.store(), "chat"}, "y\n");
  EXPECT_EQ(dropped.exit_code, 0) << dropped.out;
  EXPECT_THAT(Names(folder.store()), IsEmpty());
}

TEST(ChangeTest, RefusedBesideAWriter) {
  const TempFolder folder;
  Writer writer(folder.store());
  writer.Create("chat", 300);
  const std::vector<std::string> commands[] = {{"maintain", folder.store(), "--all"},
                                               {"evict", folder.store(), "chat", "--keep", "10"},
                                               {"drop", folder.store(), "chat", "--yes"}};
  for (const auto& command : commands) {
    const CliResult result = RunCli(command);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_EQ(result.err, "mneme: FAILED_PRECONDITION: store is open by another writer: " + folder.store() +
                              "; close it there, or open it for reading only\n");
  }
  EXPECT_EQ(RunCli({"info", folder.store(), "chat", "--json"}).Json()["tokens"], 300);
}

TEST(ChangeTest, NothingIsCreated) {
  const TempFolder folder;
  const std::vector<std::string> commands[] = {{"maintain", folder.store(), "--all"},
                                               {"evict", folder.store(), "chat", "--keep", "10"},
                                               {"drop", folder.store(), "chat", "--yes"}};
  for (const auto& command : commands) {
    const CliResult result = RunCli(command);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, HasSubstr("NOT_FOUND"));
    EXPECT_FALSE(std::filesystem::exists(folder.store()));
  }
}

}  // namespace
}  // namespace mneme::cli
