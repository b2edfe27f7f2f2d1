// SPDX-License-Identifier: Apache-2.0
// `mneme-llama ingest`: texts that grew, several texts in one memory, the standard input, and what it refuses.
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/main/memory_text.h"
#include "hosts/llamacpp/main/text.h"
#include "tests/hosts/llamacpp/program.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kWindow = 64;
constexpr char kStory[] =
    "The lighthouse keeper of Ansa counted forty-one ships before noon. He wrote each name into a green book, and the "
    "book into his memory. When the storm took the roof, the book was gone, but every evening he recited the ships: "
    "Marigold, Tern, Old Patience, Three Sisters, Kestrel, and those that had not come back.";

class IngestTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = folder_.path() + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  ProgramResult Ingest(const std::string& arguments) const {
    return RunProgram("ingest --memory m --window " + std::to_string(kWindow) + " --store '" + store_ + "'" +
                      SmolOptions() + " " + arguments);
  }
  // What the memory holds, as text.
  std::string Held() const {
    ModelSettings settings = SettingsFor(SmolPath());
    settings.window = kWindow;
    const Session session(Smol(), settings);
    const Store store(store_, 2, StoreUse::kRead);
    const Memory memory(store, "m", session, /*create=*/false, 0, "");
    std::vector<int32_t> ids(static_cast<size_t>(memory.Info().next_token));
    mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
    args.tokens = static_cast<int64_t>(ids.size());
    args.token_ids = ids.data();
    EXPECT_EQ(mneme_memory_read(memory.get(), &args), MNEME_OK) << mneme_last_error();
    std::string text;
    for (const int32_t id : ids) text += TokenText(Smol(), id);
    return text;
  }

  const TemporaryFolder folder_;
  const std::string store_ = folder_.path() + "/store";
};

// At every byte: between tokens and within them.
TEST_F(IngestTest, ATextThatGrewGoesOn) {
  const std::string story = kStory;
  size_t cuts_within_tokens = 0;
  for (size_t cut = 30; cut < 80; cut += 7) {
    ASSERT_EQ(Ingest("--text '" + Write("story", story.substr(0, cut)) + "'").exit_code, 0);
    const ProgramResult grown = Ingest("--text '" + Write("story", story) + "'");
    EXPECT_EQ(grown.exit_code, 0) << grown.output;
    EXPECT_EQ(Held(), story) << "cut at " << cut;
    if (grown.output.find("the text grew") != std::string::npos) ++cuts_within_tokens;
    EXPECT_EQ(RunProgram("check --memory m --store '" + store_ + "'" + SmolOptions() + " --text '" + folder_.path() +
                         "/story'")
                  .exit_code,
              0);
    std::filesystem::remove_all(store_);
  }
  EXPECT_GT(cuts_within_tokens, 0u) << "no cut tried what this test is for";
}

TEST_F(IngestTest, AnotherTextIsRefusedAndNothingIsLost) {
  const std::string story = kStory;
  ASSERT_EQ(Ingest("--text '" + Write("a", story) + "'").exit_code, 0);
  for (const std::string& other : {story.substr(0, 100), story.substr(0, 100) + " And then nothing more came.",
                                   "Another story. " + story, story.substr(0, story.size() - 2) + "?! And more."}) {
    const ProgramResult refused = Ingest("--text '" + Write("b", other) + "'");
    EXPECT_EQ(refused.exit_code, 1) << refused.output;
    EXPECT_THAT(refused.output, HasSubstr("the memory holds"));
    EXPECT_EQ(Held(), story);
  }
  EXPECT_THAT(Ingest("--text '" + Write("b", "Another text.") + "'").output, HasSubstr("--append"));
}

TEST_F(IngestTest, AppendsATextOnce) {
  const std::string story = kStory, more = " The harbour master of Lund kept no book at all, and " + story.substr(40);
  ASSERT_EQ(Ingest("--text '" + Write("a", story) + "'").exit_code, 0);
  const std::string append = "--append --text '" + Write("b", more) + "'";
  ASSERT_EQ(Ingest(append + " --tokens 40").exit_code, 0) << "as a run that was killed";
  const ProgramResult rest = Ingest(append);
  ASSERT_EQ(rest.exit_code, 0) << rest.output;
  EXPECT_EQ(Held(), story + more);
  EXPECT_THAT(Ingest(append).output, HasSubstr("0 tokens taken in"));
  EXPECT_EQ(Held(), story + more);
  const std::string short_text = "--append --text '" + Write("c", " Short.") + "'";
  ASSERT_EQ(Ingest(short_text).exit_code, 0);
  EXPECT_EQ(Held(), story + more + " Short.");
}

TEST_F(IngestTest, SeveralFilesAndTheStandardInput) {
  const std::string story = kStory, more = " A second file.";
  const std::string a = Write("a", story), b = Write("b", more);
  ASSERT_EQ(Ingest("--text '" + a + "'").exit_code, 0);
  ASSERT_EQ(Ingest("--text '" + a + "' '" + b + "'").exit_code, 0) << "a longer list goes on";
  EXPECT_EQ(Held(), story + more);
  ASSERT_EQ(Ingest("--append --text - <'" + b + "'").exit_code, 0);
  EXPECT_EQ(Held(), story + more) << "it ends with this text already";
  ASSERT_EQ(Ingest("--append --text - <'" + a + "'").exit_code, 0);
  EXPECT_EQ(Held(), story + more + story);
  EXPECT_EQ(Ingest("--bytes 5 --text '" + a + "' '" + b + "'").exit_code, 2);
  EXPECT_EQ(Ingest("--text '" + folder_.path() + "/none'").exit_code, 2);
}

TEST_F(IngestTest, TextThatIsNotUtf8IsNamed) {
  const std::string bad = Write("bad", "\xEF\xBB\xBFHello \xE9t\xE9");
  const ProgramResult refused = Ingest("--text '" + bad + "'");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.output, HasSubstr(bad + ": is not UTF-8: byte 0xE9 at offset 9"));
  EXPECT_FALSE(std::filesystem::exists(store_));
  ASSERT_EQ(Ingest("--text '" + Write("good", "\xEF\xBB\xBFHello \xC3\xA9t\xC3\xA9") + "'").exit_code, 0);
  EXPECT_EQ(Held(), "Hello \xC3\xA9t\xC3\xA9");
}

}  // namespace
}  // namespace mneme::llama
