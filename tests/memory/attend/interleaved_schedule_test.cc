// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/interleaved_schedule.h"

#include <set>
#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(InterleavedScheduleTest, HasEachItemOnce) {
  for (const size_t searches : {0, 1, 2, 7}) {
    for (const size_t locals : {0, 1, 2, 8}) {
      for (const size_t width : {1, 2, 3, 16}) {
        const InterleavedSchedule schedule(searches, locals, width);
        EXPECT_EQ(schedule.size(), searches + locals);
        std::set<std::pair<bool, size_t>> seen;
        for (size_t i = 0; i < schedule.size(); ++i) {
          const InterleavedSchedule::Item item = schedule.At(i);
          EXPECT_LT(item.number, item.is_search ? searches : locals);
          EXPECT_TRUE(seen.emplace(item.is_search, item.number).second);
        }
      }
    }
  }
}

// s: a search, l: local attention.
std::string Order(size_t searches, size_t locals, size_t width) {
  const InterleavedSchedule schedule(searches, locals, width);
  std::string order;
  for (size_t i = 0; i < schedule.size(); ++i) order += schedule.At(i).is_search ? 's' : 'l';
  return order;
}

TEST(InterleavedScheduleTest, HalfOfTheThreadsBeginWithLocalAttention) {
  EXPECT_EQ(Order(4, 4, 2), "sllsssll");
  EXPECT_EQ(Order(5, 4, 4), "ssllsssll");
  EXPECT_EQ(Order(4, 1, 2), "slsss");
  EXPECT_EQ(Order(6, 3, 2), "sllsssssl");
  EXPECT_EQ(Order(2, 4, 16), "ssllll");
  EXPECT_EQ(Order(3, 0, 2), "sss");
}

TEST(InterleavedScheduleTest, OneThreadSearchesFirst) {
  EXPECT_EQ(Order(2, 2, 1), "ssll");
}

}  // namespace
}  // namespace mneme
