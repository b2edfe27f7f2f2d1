// SPDX-License-Identifier: Apache-2.0
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/cli/testing.h"

namespace mneme::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

std::vector<std::string> FilesWith(const std::string& folder, const std::string& extension) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == extension) files.push_back(entry.path());
  }
  return files;
}

// Flips a byte, not in the very middle: of a file with records of one size, that is between two of them.
void Damage(const std::string& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  const auto place = static_cast<std::streamoff>(std::filesystem::file_size(path) * 7 / 10);
  file.seekg(place);
  const char byte = static_cast<char>(file.get() ^ 0x5a);
  file.seekp(place);
  file.put(byte);
  ASSERT_TRUE(file.good()) << path;
}

class VerifyTest : public ::testing::Test {
 protected:
  VerifyTest() {
    Writer writer(folder_.store());
    writer.Create("chat", 1300, "flat");
    writer.Create("notes", 300);
  }

  CliResult Verify() const { return RunCli({"verify", folder_.store()}); }
  CliResult VerifyJson() const { return RunCli({"verify", folder_.store(), "--json"}); }

  const TempFolder folder_;
};

TEST_F(VerifyTest, Undamaged) {
  const CliResult human = Verify();
  EXPECT_EQ(human.exit_code, 0) << human.err;
  EXPECT_THAT(human.out, HasSubstr("2 memories\nno damage\n"));
  EXPECT_THAT(human.err, IsEmpty());
  const CliResult result = VerifyJson();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json report = result.Json();
  EXPECT_EQ(report["damaged"], false);
  EXPECT_EQ(report["memories"], 2);
  EXPECT_EQ(report["damaged_memories"], 0);
  EXPECT_EQ(report["damaged_values"], 0);
  EXPECT_EQ(report["damaged_indexes"], 0);
  EXPECT_GE(report["bytes_read"], 1600 * Writer::kRowBytes);
  EXPECT_TRUE(report["messages"].empty());
}

TEST_F(VerifyTest, DamagedBlobFile) {
  const std::vector<std::string> files = FilesWith(folder_.store(), ".blob");
  ASSERT_FALSE(files.empty());
  for (const std::string& file : files) Damage(file);
  const CliResult human = Verify();
  EXPECT_EQ(human.exit_code, 3);
  EXPECT_THAT(human.out, HasSubstr("damaged: "));
  EXPECT_THAT(human.out, Not(HasSubstr("no damage")));
  EXPECT_THAT(human.err, HasSubstr("mneme: "));
  const CliResult result = VerifyJson();
  EXPECT_EQ(result.exit_code, 3);
  const nlohmann::json report = result.Json();
  EXPECT_EQ(report["damaged"], true);
  EXPECT_GE(report["damaged_values"].get<int>() + report["damaged_indexes"].get<int>(), 1);
  EXPECT_FALSE(report["messages"].empty());
}

// Whether the store can still be opened or not, and whatever depends on the byte.
TEST_F(VerifyTest, DamagedTableFiles) {
  const std::vector<std::string> files = FilesWith(folder_.store(), ".sst");
  ASSERT_FALSE(files.empty());
  for (const std::string& file : files) {
    Damage(file);
    const CliResult result = Verify();
    EXPECT_EQ(result.exit_code, 3) << file << ": " << result.out << result.err;
    EXPECT_THAT(result.err, HasSubstr(std::filesystem::path(file).filename().string()));
    Damage(file);  // mended
  }
  EXPECT_EQ(Verify().exit_code, 0);
}

TEST_F(VerifyTest, MissingTableOrBlobFile) {
  for (const char* const extension : {".sst", ".blob"}) {
    const std::vector<std::string> files = FilesWith(folder_.store(), extension);
    ASSERT_FALSE(files.empty());
    for (const std::string& file : files) {
      std::filesystem::rename(file, file + ".away");
      const CliResult result = Verify();
      EXPECT_EQ(result.exit_code, 3) << file << ": " << result.out << result.err;
      EXPECT_THAT(result.err, HasSubstr(std::filesystem::path(file).filename().string()));
      std::filesystem::rename(file + ".away", file);
    }
  }
  EXPECT_EQ(Verify().exit_code, 0);
}

TEST_F(VerifyTest, MissingFile) {
  std::filesystem::remove(folder_.store() + "/CURRENT");
  const CliResult result = Verify();
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("mneme: DATA_LOSS: "));
  EXPECT_EQ(RunCli({"list", folder_.store()}).exit_code, 1);
}

}  // namespace
}  // namespace mneme::cli
