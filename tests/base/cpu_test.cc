// SPDX-License-Identifier: Apache-2.0
#include "base/cpu.h"

#include <cstdlib>
#include <string>

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(CpuTest, TheBestTargetIsOneThatRuns) {
  EXPECT_TRUE(CpuHas(CpuTarget::kPlain));
  EXPECT_TRUE(CpuHas(BestCpuTarget()));
  EXPECT_TRUE(CpuHas(CpuTarget::kAvx2) || !CpuHas(CpuTarget::kAvx512));
}

// The variable is read once in a process, so each value is tested in a process of its own.
TEST(CpuDeathTest, TheEnvironmentLowersTheTargetAndNeverRaisesIt) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (int i = 0; i < kCpuTargetCount; ++i) {
    const auto target = static_cast<CpuTarget>(i);
    const std::string name(CpuTargetName(target));
    EXPECT_EXIT(
        {
          setenv("MNEME_KERNELS", name.c_str(), 1);
          const CpuTarget best = BestCpuTarget();
          std::exit(CpuHas(target) ? best != target : !CpuHas(best));
        },
        ::testing::ExitedWithCode(0), "")
        << name;
  }
}

}  // namespace
}  // namespace mneme
