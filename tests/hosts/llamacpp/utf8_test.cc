// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/utf8.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/main/failure.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

std::string RefusalOf(const std::string& bytes) {
  try {
    CheckUtf8(bytes, "a.txt");
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

TEST(Utf8Test, AByteOrderMarkIsStripped) {
  EXPECT_EQ(CheckUtf8("\xEF\xBB\xBFna\xC3\xAFve", "a.txt"), "na\xC3\xAFve");
  EXPECT_EQ(CheckUtf8("a\xEF\xBB\xBF", "a.txt"), "a\xEF\xBB\xBF") << "within a text it is a character";
}

TEST(Utf8Test, BadBytesAreNamedByFileAndOffset) {
  EXPECT_THAT(RefusalOf("ab\xFF"), HasSubstr("a.txt: is not UTF-8: byte 0xFF at offset 2"));
  EXPECT_THAT(RefusalOf("\xEF\xBB\xBFz\x80"), HasSubstr("offset 4")) << "in the file, its mark included";
  for (const std::string bad : {"\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82", "caf\xE9"}) {
    EXPECT_THAT(RefusalOf(bad), HasSubstr("is not UTF-8")) << bad;
  }
  EXPECT_THAT(RefusalOf("\xFF\xFEh\0i"), HasSubstr("UTF-16"));
  EXPECT_EQ(CheckUtf8(std::string("a\0b", 3), "a.txt").size(), 3u);
}

TEST(Utf8Test, ACutCharacterIsLeftOut) {
  const std::string euro = "\xE2\x82\xAC", smile = "\xF0\x9F\x98\x80";
  EXPECT_EQ(WithoutCutCharacter("a" + euro), "a" + euro);
  EXPECT_EQ(WithoutCutCharacter("a" + euro.substr(0, 2)), "a");
  EXPECT_EQ(WithoutCutCharacter("a" + euro.substr(0, 1)), "a");
  for (size_t length = 1; length < 4; ++length) EXPECT_EQ(WithoutCutCharacter(smile.substr(0, length)), "");
  EXPECT_EQ(WithoutCutCharacter(smile), smile);
  EXPECT_EQ(WithoutCutCharacter(""), "");
}

TEST(Utf8Test, AStreamShowsWholeCharacters) {
  const std::string text = "na\xC3\xAFve \xE2\x82\xAC \xF0\x9F\x98\x80!";
  for (size_t step = 1; step < 5; ++step) {
    Utf8Stream stream;
    std::string shown;
    for (size_t begin = 0; begin < text.size(); begin += step) {
      const std::string part = stream.Add(text.substr(begin, step));
      EXPECT_EQ(RefusalOf(part), "") << part;
      shown += part;
    }
    EXPECT_EQ(shown + stream.Finish(), text);
  }
}

TEST(Utf8Test, AStreamReplacesWhatBecomesNoCharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Add("a\xFF"
                       "b"),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(stream.Add("\xE2\x82"), "");
  EXPECT_EQ(stream.Finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.Finish(), "");
  EXPECT_EQ(stream.Add("\x80\x80\x80\x80\x80").substr(0, 3), "\xEF\xBF\xBD") << "no begin of a character is waited for";
}

}  // namespace
}  // namespace mneme::llama
