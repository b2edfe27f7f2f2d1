// SPDX-License-Identifier: Apache-2.0
#include "cli/format.h"

#include "gtest/gtest.h"

namespace mneme::cli {
namespace {

TEST(FormatTest, NamesCannotMoveTheCursor) {
  EXPECT_EQ(EscapeName("plain name, it's fine"), "plain name, it's fine");
  EXPECT_EQ(EscapeName("größe 記憶 🧠"), "größe 記憶 🧠");
  EXPECT_EQ(EscapeName("a\nb\tc\rd"), "a\\nb\\tc\\rd");
  EXPECT_EQ(EscapeName("\x1b[31mred"), "\\x1b[31mred");
  EXPECT_EQ(EscapeName("back\\slash"), "back\\\\slash");
  EXPECT_EQ(EscapeName(" edge "), "\\x20edge\\x20");
  EXPECT_EQ(EscapeName("\x7f"), "\\x7f");
  EXPECT_EQ(EscapeName("\u202egnp.exe"), "\\u202egnp.exe");
  EXPECT_EQ(EscapeName("\u0085"), "\\u0085");
  EXPECT_EQ(EscapeMessage(" C:\\ \x1b"), " C:\\ \\x1b");
}

TEST(FormatTest, BytesThatAreNoUtf8) {
  EXPECT_EQ(EscapeName("\xff"), "\\xff");
  EXPECT_EQ(EscapeName("a\xc3"), "a\\xc3");                  // cut short
  EXPECT_EQ(EscapeName("\xc0\xaf"), "\\xc0\\xaf");           // overlong
  EXPECT_EQ(EscapeName("\xe0\x80\x80"), "\\xe0\\x80\\x80");  // overlong
  EXPECT_EQ(EscapeName("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_EQ(EscapeName("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
}

TEST(FormatTest, Sizes) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.0 KiB");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(HumanBytes(int64_t{5} << 40), "5.0 TiB");
  EXPECT_EQ(HumanBytes(INT64_MAX), "8.0 EiB");
}

TEST(FormatTest, Counts) {
  EXPECT_EQ(HumanCount(0), "0");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(HumanCount(1000), "1,000");
  EXPECT_EQ(HumanCount(1234567), "1,234,567");
  EXPECT_EQ(HumanCount(-123456), "-123,456");
  EXPECT_EQ(Counted(1, "memory", "memories"), "1 memory");
  EXPECT_EQ(Counted(0, "memory", "memories"), "0 memories");
  EXPECT_EQ(HumanSeconds(7), "0:07");
  EXPECT_EQ(HumanSeconds(754), "12:34");
  EXPECT_EQ(HumanSeconds(3723), "1:02:03");
}

TEST(FormatTest, TableAlignsWhatIsSeen) {
  using enum Table::Align;
  Table table({kLeft, kRight, kLeft});
  table.Add({"記憶", "1", "x"});
  table.Add({"größer", "1,000", ""});
  EXPECT_EQ(table.ToString(),
            "記憶        1  x\n"
            "größer  1,000  \n");
}

}  // namespace
}  // namespace mneme::cli
