// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "cli/format.h"
#include "tests/cli/testing.h"

namespace mneme::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;

TEST(ReadTest, List) {
  const TempFolder folder;
  int64_t alpha = 0;
  int64_t beta = 0;
  {
    Writer writer(folder.store());
    writer.Create("beta", 1300);
    writer.Create("alpha", 10);
    alpha = writer.Info("alpha").bytes;
    beta = writer.Info("beta").bytes;
  }
  const CliResult human = RunCli({"list", folder.store()});
  EXPECT_EQ(human.exit_code, 0) << human.err;
  EXPECT_EQ(human.out, "NAME   TOKENS       SIZE\nalpha      10    " + HumanBytes(alpha) + "\nbeta    1,300  " +
                           HumanBytes(beta) + "\n");
  EXPECT_THAT(human.err, IsEmpty());

  const CliResult json = RunCli({"list", "--json", folder.store()});
  EXPECT_EQ(json.exit_code, 0) << json.err;
  EXPECT_EQ(json.Json(), (nlohmann::json{{"memories",
                                          {{{"name", "alpha"}, {"tokens", 10}, {"bytes", alpha}},
                                           {{"name", "beta"}, {"tokens", 1300}, {"bytes", beta}}}}}));
}

TEST(ReadTest, EmptyStore) {
  const TempFolder folder;
  { const Writer writer(folder.store()); }
  EXPECT_EQ(RunCli({"list", folder.store()}).out, "no memories\n");
  EXPECT_EQ(RunCli({"list", folder.store(), "--json"}).Json(), (nlohmann::json{{"memories", nlohmann::json::array()}}));
  const CliResult stats = RunCli({"stats", folder.store(), "--json"});
  EXPECT_EQ(stats.exit_code, 0) << stats.err;
  EXPECT_EQ(stats.Json()["memories"], 0);
  EXPECT_EQ(stats.Json()["tokens"], 0);
}

TEST(ReadTest, Info) {
  const TempFolder folder;
  mneme_memory_info expected;
  {
    Writer writer(folder.store());
    writer.Create("chat", 1300, "flat", 1024, 4);
    expected = writer.Info("chat");
  }
  const CliResult human = RunCli({"info", folder.store(), "chat"});
  EXPECT_EQ(human.exit_code, 0) << human.err;
  EXPECT_THAT(human.err, IsEmpty());
  EXPECT_THAT(human.out, HasSubstr("model      test-model\n"));
  EXPECT_THAT(human.out, HasSubstr("stored as  f16, keys not rotated\n"));
  EXPECT_THAT(human.out, HasSubstr("tokens     1,024\n"));
  EXPECT_THAT(human.out, HasSubstr("evicted    276 tokens before token 280\n"));
  EXPECT_THAT(human.out, HasSubstr("pinned     the first 4 tokens\n"));
  EXPECT_THAT(human.out, HasSubstr("bound      1,024 tokens\n"));
  EXPECT_THAT(human.out, HasSubstr("size       " + HumanBytes(expected.bytes) + "\n"));

  const CliResult result = RunCli({"info", folder.store(), "chat", "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json info = result.Json();
  EXPECT_EQ(info["name"], "chat");
  EXPECT_EQ(info["model_name"], "test-model");
  EXPECT_EQ(info["weights_fingerprint"], "fingerprint-1");
  EXPECT_EQ(info["layers"], 2);
  EXPECT_EQ(info["stored_dtype"], "f16");
  EXPECT_EQ(info["keys_rotated"], false);
  EXPECT_EQ(info["next_token"], 1300);
  EXPECT_EQ(info["tokens"], 1024);
  EXPECT_EQ(info["first_kept"], 280);
  EXPECT_EQ(info["pinned_tokens"], 4);
  EXPECT_EQ(info["max_tokens"], 1024);
  EXPECT_EQ(info["bytes"], expected.bytes);
  EXPECT_EQ(info["segments"], expected.segments);
  EXPECT_EQ(info["tail_tokens"], expected.tail_tokens);
  EXPECT_EQ(info["indexes"], expected.indexes);
  EXPECT_EQ(info["segment_tokens"], 256);
  EXPECT_EQ(info["index"], "flat");
}

TEST(ReadTest, Stats) {
  const TempFolder folder;
  int64_t bytes = 0;
  {
    Writer writer(folder.store());
    writer.Create("one", 1300);
    writer.Create("two", 700);
    bytes = writer.Info("one").bytes + writer.Info("two").bytes;
  }
  const nlohmann::json stats = RunCli({"stats", folder.store(), "--json"}).Json();
  EXPECT_EQ(stats["memories"], 2);
  EXPECT_EQ(stats["tokens"], 2000);
  EXPECT_EQ(stats["bytes"], bytes);
  EXPECT_GE(stats["disk_bytes"], bytes);
  const CliResult metrics = RunCli({"stats", folder.store(), "--prometheus"});
  EXPECT_EQ(metrics.exit_code, 0) << metrics.err;
  EXPECT_THAT(metrics.out, HasSubstr("# TYPE mneme_memories gauge\nmneme_memories 2\n"));
  EXPECT_EQ(RunCli({"stats", folder.store(), "--prometheus", "--json"}).exit_code, 2);
  EXPECT_THAT(RunCli({"stats", folder.store()}).out,
              MatchesRegex("memories +2\ntokens +2,000\nrows +[0-9.]+ KiB\ndisk +[0-9.]+ [KM]iB\n"));
}

TEST(ReadTest, BesideAWriter) {
  const TempFolder folder;
  Writer writer(folder.store());
  writer.Create("chat", 300);
  EXPECT_EQ(RunCli({"list", folder.store(), "--json"}).Json()["memories"][0]["tokens"], 300);
  EXPECT_EQ(RunCli({"info", folder.store(), "chat", "--json"}).Json()["tokens"], 300);
  EXPECT_EQ(RunCli({"stats", folder.store(), "--json"}).Json()["memories"], 1);
  EXPECT_EQ(RunCli({"verify", folder.store(), "--json"}).Json()["damaged"], false);
  // The next one sees what has been committed since.
  writer.Create("other", 1);
  EXPECT_EQ(RunCli({"list", folder.store(), "--json"}).Json()["memories"].size(), 2u);
}

TEST(ReadTest, OddNames) {
  const std::string names[] = {"list",
                               "[a,b]",
                               "-dash",
                               "--all",
                               " edge ",
                               "a\nb",
                               "\x1b[2J",
                               "\u202egnp",
                               "größe",
                               "\x01[x]",
                               "back\\slash 'q'",
                               "記憶",
                               std::string(255, 'n')};
  const TempFolder folder;
  {
    Writer writer(folder.store());
    for (const std::string& name : names) writer.Create(name, 1);
  }
  const CliResult human = RunCli({"list", folder.store()});
  EXPECT_EQ(human.exit_code, 0) << human.err;
  EXPECT_EQ(std::count(human.out.begin(), human.out.end(), '\n'), 1 + static_cast<int64_t>(std::size(names)));
  EXPECT_THAT(human.out, HasSubstr("\n\\x1b[2J "));
  EXPECT_THAT(human.out, HasSubstr("\na\\nb "));
  EXPECT_THAT(human.out, HasSubstr("\n\\u202egnp "));
  std::set<std::string> listed;
  const nlohmann::json list = RunCli({"list", folder.store(), "--json"}).Json();
  for (const auto& memory : list["memories"]) listed.insert(memory["name"]);
  EXPECT_EQ(listed, std::set<std::string>(std::begin(names), std::end(names)));
  for (const std::string& name : names) {
    const CliResult info = RunCli({"info", "--json", "--", folder.store(), name});
    EXPECT_EQ(info.exit_code, 0) << name << ": " << info.err;
    if (info.exit_code != 0) continue;
    EXPECT_EQ(info.Json()["name"], name);
  }
  std::vector<std::string> maintain = {"maintain", "--json", "--", folder.store()};
  maintain.insert(maintain.end(), std::begin(names), std::end(names));
  const CliResult maintained = RunCli(maintain);
  EXPECT_EQ(maintained.exit_code, 0) << maintained.err;
  EXPECT_EQ(maintained.Json()["memories"].size(), std::size(names));
}

TEST(ReadTest, ClearErrors) {
  const TempFolder folder;
  { const Writer writer(folder.store()); }
  const CliResult missing = RunCli({"info", folder.store(), "no\nsuch"});
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.out, IsEmpty());
  EXPECT_THAT(missing.err, HasSubstr("mneme: NOT_FOUND: "));
  EXPECT_THAT(missing.err, HasSubstr("no\\nsuch"));
  for (const char* command : {"list", "stats", "verify"}) {
    const CliResult result = RunCli({command, folder.path() + "/nowhere", "--json"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, HasSubstr("mneme: NOT_FOUND: "));
    EXPECT_THAT(result.err, HasSubstr("nowhere"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder.path() + "/nowhere"));
}

}  // namespace
}  // namespace mneme::cli
