// SPDX-License-Identifier: Apache-2.0
// A memory keeps the settings that it was made with, and commands use them without being told.
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/main/profile.h"
#include "tests/hosts/llamacpp/program.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

std::string Kept(const std::string& path) {
  const Store store(path, 1, StoreUse::kRead);
  mneme_memory* memory = nullptr;
  CheckEngine(mneme_memory_open(store.get(), "m", nullptr, &memory));
  size_t size = 0;
  EXPECT_EQ(mneme_memory_get_attachment(memory, kSettingsAttachment, nullptr, 0, &size, nullptr), MNEME_OK);
  std::string text(size, '\0');
  EXPECT_EQ(mneme_memory_get_attachment(memory, kSettingsAttachment, text.data(), size, nullptr, nullptr), MNEME_OK);
  EXPECT_EQ(mneme_memory_close(memory), MNEME_OK);
  return text;
}

TEST(StoredSettingsTest, NobodyRepeatsThem) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/store";
  const std::string memory = " --store '" + path + "' --memory m" + SmolOptions();
  const std::string profile = folder.path() + "/profile.json";
  std::ofstream(profile) << R"({"layers": [8, 20], "policy": "as-stored", "window": 64,
                               "rules": [{"layer": 20, "top_k": [8, 8, 8, 8, 8, 8, 8, 8, 0]}]})";
  const std::string ingest = "ingest" + memory + TextOptions();
  ASSERT_EQ(RunProgram(ingest + " --tokens 96 --top-k 16 --profile '" + profile + "'").exit_code, 0);
  const std::string kept = Kept(path);
  for (const char* part : {R"("layers":[8,20])", R"("policy":"as-stored")", R"("window":64)", R"("top_k":16)",
                           R"("rules":[{"layer":20,"top_k":[8,8,8,8,8,8,8,8,0]}])"}) {
    EXPECT_THAT(kept, HasSubstr(part));
  }
  // Without them each of these would be another model's card, another kind of keys or another window.
  ProgramResult result = RunProgram(ingest + " --tokens 160");
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("64 tokens taken in"));
  result = RunProgram("check" + memory + TextOptions());
  EXPECT_EQ(result.exit_code, 0) << result.output;
  result = RunProgram("generate --resume --prompt x --predict 1" + memory);
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("window restored"));
  EXPECT_EQ(Kept(path), kept);
  // What is given comes first.
  result = RunProgram("generate --prompt x --predict 1 --layers 8,20,25" + memory);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("number of layers"));
}

}  // namespace
}  // namespace mneme::llama
