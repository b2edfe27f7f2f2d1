// SPDX-License-Identifier: Apache-2.0
// What is kept within a budget, and what makes room for it. Entries are of segments that hold nothing: the cache counts
// what it is told.

#include "memory/segment/row_cache.h"

#include "memory/segment/segment.h"
#include "tests/memory/testing.h"

namespace mneme {
namespace {

class RowCacheTest : public ::testing::Test {
 protected:
  std::shared_ptr<Segment> NewSegment() {
    return Segment::Sealed(++last_id_, UnequalCard(), DType::kF16, nullptr, context_, 256);
  }

  const std::shared_ptr<SegmentContext> context_ = std::make_shared<SegmentContext>(100, 0, nullptr);
  RowCache& cache_ = context_->cache;
  SegmentId last_id_ = 0;
};

TEST_F(RowCacheTest, WithoutABudgetEverythingStays) {
  RowCache cache(0);
  EXPECT_FALSE(cache.bounded());
  uint64_t asked = 0;
  EXPECT_TRUE(cache.Admits(RowKind::kValues, size_t{1} << 60, &asked));
}

TEST_F(RowCacheTest, WhatIsKeptFirstNeverMakesRoomForTheRest) {
  const auto segment = NewSegment();
  uint64_t asked = 0;
  cache_.Used(segment, 0, RowKind::kCodes, 60);
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 40, &asked));
  EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 41, &asked));
  EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 41, &asked)) << "nor the second time";
  cache_.Used(segment, 0, RowKind::kKeys, 30);
  EXPECT_TRUE(cache_.Admits(RowKind::kValues, 10, &asked));
  EXPECT_FALSE(cache_.Admits(RowKind::kValues, 11, &asked));
  cache_.Used(segment, 0, RowKind::kValues, 10);
  // Values make room for keys, and both for codes.
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 10, &asked));
  cache_.Used(segment, 1, RowKind::kKeys, 10);
  cache_.Used(segment, 1, RowKind::kCodes, 40);
  EXPECT_FALSE(cache_.Admits(RowKind::kValues, 1, &asked)) << "codes fill the budget";
}

TEST_F(RowCacheTest, LayersThatTakeTurnsDoNotDriveEachOtherOut) {
  const auto segment = NewSegment();
  uint64_t asked = 0;
  for (int step = 0; step < 5; ++step) {
    cache_.Used(segment, 0, RowKind::kKeys, 70);
    EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 70, &asked)) << "step " << step;
  }
  // But what is not used any more makes room.
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 70, &asked));
  cache_.Used(segment, 1, RowKind::kKeys, 70);
  uint64_t other = 0;
  EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 70, &other));
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 30, &other)) << "the first has gone";
}

TEST_F(RowCacheTest, ASegmentThatGoesTakesItsBytesWithIt) {
  uint64_t asked = 0;
  {
    const auto segment = NewSegment();
    cache_.Used(segment, 0, RowKind::kCodes, 90);
    EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 20, &asked));
  }
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 100, &asked));
}

}  // namespace
}  // namespace mneme
