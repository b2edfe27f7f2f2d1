// SPDX-License-Identifier: Apache-2.0
#include "cli/progress_bar.h"

#include "gtest/gtest.h"

#include "cli/format.h"

namespace mneme::cli {
namespace {

TEST(ProgressTest, ShowsShareAmountAndTimeLeft) {
  EXPECT_EQ(ProgressLine("verify", 1 << 20, 4 << 20, 5, 100, HumanBytes),
            "verify  [######------------------]  25%  1.0 MiB of 4.0 MiB  ETA 0:15");
  EXPECT_EQ(ProgressLine("chat", 10, 10, 5, 100, HumanCount),
            "chat  [########################] 100%  10 of 10  ETA 0:00");
  EXPECT_EQ(ProgressLine("chat", 0, 10, 5, 100, HumanCount), "chat  [------------------------]   0%  0 of 10");
}

TEST(ProgressTest, TotalNotKnownOrExceeded) {
  EXPECT_EQ(ProgressLine("chat", 1000, 0, 5, 100, HumanCount), "chat  1,000");
  EXPECT_EQ(ProgressLine("chat", 12, 10, 5, 100, HumanCount),
            "chat  [########################] 100%  12 of 10  ETA 0:00");
}

TEST(ProgressTest, NarrowTerminal) {
  EXPECT_EQ(ProgressLine("chat", 5, 10, 5, 53, HumanCount), "  [############------------]  50%  5 of 10  ETA 0:05");
  EXPECT_EQ(ProgressLine("chat", 5, 10, 5, 30, HumanCount), "  5 of 10  ETA 0:05");
  EXPECT_EQ(ProgressLine("chat", 5, 10, 5, 10, HumanCount), "");
}

}  // namespace
}  // namespace mneme::cli
