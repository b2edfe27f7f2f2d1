#include "memory/mixed_tasks.h"

#include <set>
#include <utility>

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(MixedTasksTest, HandsOutEachTaskOnce) {
  for (const size_t scans : {0, 1, 2, 7}) {
    for (const size_t others : {0, 1, 2, 8}) {
      for (const size_t width : {1, 2, 16}) {
        for (const bool reads : {false, true}) {
          MixedTasks tasks(scans, others, width);
          std::set<std::pair<bool, size_t>> seen;
          for (size_t i = 0; i < scans + others; ++i) {
            const MixedTasks::Task task = tasks.Next();
            EXPECT_LT(task.number, task.is_scan ? scans : others);
            EXPECT_TRUE(seen.emplace(task.is_scan, task.number).second);
            if (task.is_scan && reads) tasks.Read();
          }
          EXPECT_EQ(seen.size(), scans + others);
        }
      }
    }
  }
}

TEST(MixedTasksTest, ThreadsThatBeginTogetherGetOutOfStep) {
  MixedTasks tasks(4, 4, 2);
  EXPECT_TRUE(tasks.Next().is_scan);   // one reads
  EXPECT_FALSE(tasks.Next().is_scan);  // so the other one computes
  EXPECT_FALSE(tasks.Next().is_scan);
  EXPECT_TRUE(tasks.Next().is_scan);  // half of the others are for the end
  tasks.Read();
  tasks.Read();
  EXPECT_TRUE(tasks.Next().is_scan);
  tasks.Read();
  EXPECT_TRUE(tasks.Next().is_scan);
  EXPECT_FALSE(tasks.Next().is_scan);
  EXPECT_FALSE(tasks.Next().is_scan);
}

TEST(MixedTasksTest, WhoComputesAloneGoesOnReading) {
  MixedTasks tasks(4, 4, 2);
  EXPECT_TRUE(tasks.Next().is_scan);
  tasks.Read();  // the first one computes when the second one comes
  EXPECT_TRUE(tasks.Next().is_scan);
  EXPECT_FALSE(tasks.Next().is_scan);
}

TEST(MixedTasksTest, OneThreadReadsFirst) {
  MixedTasks tasks(2, 2, 1);
  EXPECT_TRUE(tasks.Next().is_scan);
  EXPECT_TRUE(tasks.Next().is_scan);
  EXPECT_FALSE(tasks.Next().is_scan);
}

}  // namespace
}  // namespace mneme
