// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "gtest/gtest.h"
#include "hosts/llamacpp/main/progress.h"

namespace mneme::llama {
namespace {

TEST(ProgressLineTest, FitsTheTerminal) {
  for (const std::string& what : {std::string("m"), std::string(200, 'n'), std::string("scoring memory-8192")}) {
    for (int columns = 0; columns < 120; ++columns) {
      EXPECT_LE(ProgressLine(what, 8192, 8704, 1234.5, columns).size(), static_cast<size_t>(columns)) << what;
    }
    EXPECT_LE(ProgressLine(what, 123456789, 1234567890, 123456, 79).size(), 79u);
  }
}

TEST(ProgressLineTest, SaysWhatIsDone) {
  EXPECT_EQ(ProgressLine("m", 5, 10, 7.4, 79),
            "m                        [##########..........] 5/10 tokens, 7 tokens/s");
  EXPECT_EQ(ProgressLine("m", 0, 0, 0, 79), "m                        [####################] 0/0 tokens, 0 tokens/s");
}

TEST(ProgressLineTest, ANarrowTerminalLosesLabelAndBar) {
  EXPECT_EQ(ProgressLine("long name of a memory", 5, 10, 7, 44), "long nam [####.....] 5/10 tokens, 7 tokens/s");
  EXPECT_EQ(ProgressLine("m", 5, 10, 7, 30), "5/10 tokens, 7 tokens/s");
  EXPECT_EQ(ProgressLine("m", 5, 10, 7, 10), "");
}

TEST(ProgressLineTest, NamesCannotMoveTheCursor) {
  EXPECT_EQ(ProgressLine("a\nb\x1b", 1, 1, 0, 79).substr(0, 5), "a?b? ");
  EXPECT_EQ(ProgressLine("ä", 1, 1, 0, 79).substr(0, 4), "ä  ");
}

}  // namespace
}  // namespace mneme::llama
