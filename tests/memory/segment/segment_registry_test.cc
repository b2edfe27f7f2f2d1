// SPDX-License-Identifier: Apache-2.0
// Which segments of a store have an object, which are named by manifests, and whose disk is freed.

#include "memory/segment/segment_registry.h"

#include "tests/storage/testing.h"

namespace mneme {
namespace {

class SegmentRegistryTest : public ::testing::Test {
 protected:
  static constexpr int64_t kRows = 512;

  // A segment on disk that the manifest of memory `name` names, counted.
  MemoryManifest Commit(const std::string& name) {
    CommitChunked(*database_, name, kRows);
    MemoryManifest manifest = *database_->ReadManifest(name);
    ManifestSwap(&registry_, nullptr, &manifest).Replaced();
    return manifest;
  }
  void Drop(const MemoryManifest& manifest) {
    std::unique_ptr<Transaction> transaction = database_->Begin();
    ASSERT_OK(transaction->DeleteManifest(manifest.name));
    ManifestSwap swap(&registry_, &manifest, nullptr);
    ASSERT_OK(transaction->Commit(Durability::kBuffered));
    swap.Replaced();
  }
  std::shared_ptr<Segment> Find(SegmentId id) {
    return registry_.FindOrMake(id, MakeCard(1, 1, 64), DType::kF16, kRows);
  }
  bool IsOnDisk(SegmentId id) { return ReadRows(*database_, id, kTestKeys, 0, kRows).ok(); }
  void FreeNow() { registry_.FreeDropped(SegmentRegistry::Urgency::kNow); }

  TempFolder folder_;
  const std::unique_ptr<Database> database_ = OpenOrDie(folder_.store());
  SegmentRegistry registry_{database_.get(), std::make_shared<SegmentContext>(0, 0, nullptr)};
};

TEST_F(SegmentRegistryTest, ASegmentHasOneObject) {
  const std::shared_ptr<Segment> segment = Find(7);
  EXPECT_EQ(Find(7), segment);
  EXPECT_NE(Find(8), segment);
}

TEST_F(SegmentRegistryTest, AForkThatNamesMoreRowsExtendsTheObject) {
  const std::shared_ptr<Segment> segment = registry_.FindOrMake(7, MakeCard(1, 1, 64), DType::kF16, 256);
  EXPECT_EQ(segment->WholeRows(), 256);
  EXPECT_EQ(Find(7), segment);
  EXPECT_EQ(segment->WholeRows(), kRows);
}

TEST_F(SegmentRegistryTest, DiskIsFreedWithTheLastManifest) {
  const MemoryManifest first = Commit("first");
  const SegmentId id = first.segments.front().id;
  MemoryManifest second = first;
  second.name = "second";
  ManifestSwap(&registry_, nullptr, &second).Replaced();
  Drop(first);
  FreeNow();
  EXPECT_TRUE(IsOnDisk(id)) << "the second manifest names it";
  ManifestSwap(&registry_, &second, nullptr).Replaced();
  FreeNow();
  EXPECT_FALSE(IsOnDisk(id));
}

TEST_F(SegmentRegistryTest, DiskIsFreedAfterTheLastReader) {
  const MemoryManifest manifest = Commit("m");
  const SegmentId id = manifest.segments.front().id;
  std::shared_ptr<Segment> reader = Find(id);
  Drop(manifest);
  FreeNow();
  EXPECT_TRUE(IsOnDisk(id));
  reader.reset();
  FreeNow();
  EXPECT_FALSE(IsOnDisk(id));
}

TEST_F(SegmentRegistryTest, ASwapThatIsNotCompletedChangesNoCount) {
  const MemoryManifest manifest = Commit("m");
  const SegmentId id = manifest.segments.front().id;
  const MemoryManifest empty = MakeManifest("m");
  { const ManifestSwap failed(&registry_, &manifest, &empty); }
  { const ManifestSwap failed(&registry_, nullptr, &manifest); }
  FreeNow();
  EXPECT_TRUE(IsOnDisk(id));
  Drop(manifest);
  FreeNow();
  EXPECT_FALSE(IsOnDisk(id));
}

TEST_F(SegmentRegistryTest, AManifestThatNamesTheSameSegmentsDropsNone) {
  const MemoryManifest manifest = Commit("m");
  MemoryManifest next = manifest;
  ++next.generation;
  ManifestSwap(&registry_, &manifest, &next).Replaced();
  FreeNow();
  EXPECT_TRUE(IsOnDisk(manifest.segments.front().id));
}

}  // namespace
}  // namespace mneme
