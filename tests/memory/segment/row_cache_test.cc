// SPDX-License-Identifier: Apache-2.0
// Which rows a byte budget admits, and which it releases for them.

#include "memory/segment/row_cache.h"

#include <memory>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

// Holds nothing, and notes what it is asked to release.
class FakeOwner : public CachedRowsOwner {
 public:
  explicit FakeOwner(RowCache* cache) : cache_(cache) {}
  virtual ~FakeOwner() { cache_->Remove(this); }

  void Release(size_t layer, RowKind kind) override { released.emplace_back(layer, kind); }

  std::vector<std::pair<size_t, RowKind>> released;

 private:
  RowCache* const cache_;
};

class RowCacheTest : public ::testing::Test {
 protected:
  std::shared_ptr<FakeOwner> NewOwner() { return std::make_shared<FakeOwner>(&cache_); }

  RowCache cache_{100};
};

TEST_F(RowCacheTest, WithoutABudgetEverythingIsAdmitted) {
  RowCache cache(0);
  EXPECT_FALSE(cache.bounded());
  uint64_t last_request = 0;
  EXPECT_TRUE(cache.Admits(RowKind::kValues, size_t{1} << 60, &last_request));
}

TEST_F(RowCacheTest, RowsThatAreKeptLongerMakeNoRoomForOthers) {
  const auto owner = NewOwner();
  uint64_t last_request = 0;
  cache_.Touch(owner, 0, RowKind::kCodes, 60);
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 40, &last_request));
  EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 41, &last_request));
  EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 41, &last_request)) << "nor the second time";
  cache_.Touch(owner, 0, RowKind::kKeys, 30);
  EXPECT_TRUE(cache_.Admits(RowKind::kValues, 10, &last_request));
  EXPECT_FALSE(cache_.Admits(RowKind::kValues, 11, &last_request));
  cache_.Touch(owner, 0, RowKind::kValues, 10);
  // Values make room for keys, and both for codes.
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 10, &last_request));
  cache_.Touch(owner, 1, RowKind::kKeys, 10);
  cache_.Touch(owner, 1, RowKind::kCodes, 40);
  EXPECT_FALSE(cache_.Admits(RowKind::kValues, 1, &last_request)) << "codes fill the budget";
}

TEST_F(RowCacheTest, LayersThatAreUsedInTurnDoNotEvictEachOther) {
  const auto owner = NewOwner();
  uint64_t last_request = 0;
  for (int step = 0; step < 5; ++step) {
    cache_.Touch(owner, 0, RowKind::kKeys, 70);
    EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 70, &last_request)) << "step " << step;
  }
  // A layer that is not used any more makes room.
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 70, &last_request));
  cache_.Touch(owner, 1, RowKind::kKeys, 70);
  uint64_t other = 0;
  EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 70, &other));
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 30, &other)) << "the first layer was released";
}

TEST_F(RowCacheTest, ValuesAreReleasedBeforeKeysAndKeysBeforeCodes) {
  const auto owner = NewOwner();
  cache_.Touch(owner, 0, RowKind::kCodes, 30);
  cache_.Touch(owner, 1, RowKind::kKeys, 30);
  cache_.Touch(owner, 2, RowKind::kValues, 30);
  cache_.Touch(owner, 3, RowKind::kCodes, 70);
  EXPECT_THAT(owner->released,
              ::testing::ElementsAre(std::pair(size_t{2}, RowKind::kValues), std::pair(size_t{1}, RowKind::kKeys)));
  cache_.Touch(owner, 4, RowKind::kCodes, 120);
  EXPECT_THAT(owner->released, ::testing::SizeIs(4)) << "the other codes; the codes just used stay";
}

TEST_F(RowCacheTest, AnOwnerThatIsDestroyedTakesItsBytesWithIt) {
  uint64_t last_request = 0;
  {
    const auto owner = NewOwner();
    cache_.Touch(owner, 0, RowKind::kCodes, 90);
    EXPECT_FALSE(cache_.Admits(RowKind::kKeys, 20, &last_request));
  }
  EXPECT_TRUE(cache_.Admits(RowKind::kKeys, 100, &last_request));
}

}  // namespace
}  // namespace mneme
