// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/mixed_tasks.h"

#include <set>
#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(MixedTasksTest, HasEachTaskOnce) {
  for (const size_t scans : {0, 1, 2, 7}) {
    for (const size_t others : {0, 1, 2, 8}) {
      for (const size_t width : {1, 2, 3, 16}) {
        const MixedTasks tasks(scans, others, width);
        std::set<std::pair<bool, size_t>> seen;
        for (size_t i = 0; i < scans + others; ++i) {
          const MixedTasks::Task task = tasks.At(i);
          EXPECT_LT(task.number, task.is_scan ? scans : others);
          EXPECT_TRUE(seen.emplace(task.is_scan, task.number).second);
        }
      }
    }
  }
}

// s: a scan, o: another.
std::string Order(size_t scans, size_t others, size_t width) {
  const MixedTasks tasks(scans, others, width);
  std::string order;
  for (size_t i = 0; i < scans + others; ++i) order += tasks.At(i).is_scan ? 's' : 'o';
  return order;
}

TEST(MixedTasksTest, HalfOfTheThreadsBeginWithOthers) {
  EXPECT_EQ(Order(4, 4, 2), "soosssoo");
  EXPECT_EQ(Order(5, 4, 4), "ssoosssoo");
  EXPECT_EQ(Order(4, 1, 2), "sosss");
  EXPECT_EQ(Order(6, 3, 2), "soossssso");
  EXPECT_EQ(Order(2, 4, 16), "ssoooo");
  EXPECT_EQ(Order(3, 0, 2), "sss");
}

TEST(MixedTasksTest, OneThreadReadsFirst) {
  EXPECT_EQ(Order(2, 2, 1), "ssoo");
}

}  // namespace
}  // namespace mneme
