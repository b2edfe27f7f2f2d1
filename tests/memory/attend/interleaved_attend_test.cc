// SPDX-License-Identifier: Apache-2.0
// A sequence whose rows are all in RAM is searched and fused in one interleaved pass, others in two. Both ways give the
// same bits.

#include <optional>
#include <utility>

#include "tests/memory/attend_call.h"

namespace mneme {
namespace {

// Counts the ParallelFor calls that have tasks.
class CountingExecutor final : public Executor {
 public:
  explicit CountingExecutor(Executor& executor) : executor_(executor) {}
  void ParallelFor(size_t n, absl::FunctionRef<void(size_t)> task) override {
    if (n > 0) ++passes_;
    executor_.ParallelFor(n, task);
  }
  size_t Width() const override { return executor_.Width(); }
  int TakePasses() { return std::exchange(passes_, 0); }

 private:
  Executor& executor_;
  int passes_ = 0;
};

class InterleavedAttendTest : public ::testing::Test {
 protected:
  // A memory with sealed segments of 512 rows, a tail, 20 pinned tokens and evicted ones.
  InterleavedAttendTest() : store_(OpenStore(folder_.store())), pool_(MakeThreadPool(3)) {
    MemoryOptions options;
    options.segment_tokens = 512;
    options.pinned_tokens = 20;
    options.max_tokens = 2800;
    memory_ = *store_->CreateMemory("m", card_, options);
    oracle_.emplace(card_, options);
    for (int64_t token = 0; token < 3000; token += 500) {
      AppendTokens(*memory_, &*oracle_, 5, token, 500);
      EXPECT_OK(memory_->Commit(Durability::kBuffered, nullptr));
    }
  }

  // Two equal sequences, without statuses and with them: without, both are searched before any output is written.
  void Compare(const AttendCase& one, bool interleaves) {
    AttendCase made = one;
    made.sequences[0].memory = memory_.get();
    made.sequences[0].oracle = &*oracle_;
    made.sequences.push_back(made.sequences[0]);
    AttendCall call(random_, made);
    ASSERT_OK(call.Run(*pool_));
    const AttendResult expected = call.result();
    call.Check();
    std::vector<absl::Status> statuses(2);
    call.request().statuses = absl::MakeSpan(statuses);
    for (Executor* const executor : {&InlineExecutor(), pool_.get()}) {
      CountingExecutor counting(*executor);
      ASSERT_OK(call.Run(counting));
      EXPECT_TRUE(call.result() == expected);
      // One pass a sequence, and if they did not interleave, one more that fuses both.
      EXPECT_EQ(counting.TakePasses(), interleaves ? 2 : 3);
    }
    EXPECT_OK(statuses[0]);
    EXPECT_OK(statuses[1]);
  }

  TestRandom random_{9};
  const ModelCard card_ = UnequalCard();
  const TempFolder folder_;
  const std::unique_ptr<Store> store_;
  const std::unique_ptr<Executor> pool_;
  std::shared_ptr<Memory> memory_;
  std::optional<Oracle> oracle_;
};

TEST_F(InterleavedAttendTest, GivesTheBitsOfTwoPasses) {
  for (const size_t layer : {0, 1}) {
    for (const int64_t queries : {1, 8, 9}) {
      for (const Fusion fusion : {Fusion::kJoint, Fusion::kGated, Fusion::kMemoryOnly}) {
        SCOPED_TRACE(absl::StrCat("layer ", layer, ", ", queries, " queries, fusion ", static_cast<int>(fusion)));
        AttendCase made = MixedHeads(card_, layer, queries, PositionPolicy::kAsStored);
        made.fusion = fusion;
        Compare(made, queries <= 8);
      }
    }
  }
}

TEST_F(InterleavedAttendTest, HeadsMayRetrieveDifferentCountsOrNone) {
  AttendCase made = MixedHeads(card_, 0, 3, PositionPolicy::kAsStored);
  for (size_t head = 0; head < made.heads.size(); ++head) made.heads[head].top_k = static_cast<int64_t>(5 * head);
  Compare(made, true);
  // The query heads of one KV head retrieve nothing.
  for (int64_t head = 0; head < made.layer.group(); ++head) made.heads[static_cast<size_t>(head)].top_k = 0;
  Compare(made, true);
}

TEST_F(InterleavedAttendTest, WithoutLocalRows) {
  AttendCase made = MixedHeads(card_, 0, 2, PositionPolicy::kAsStored);
  made.sequences[0].locals = 0;
  Compare(made, true);
}

TEST_F(InterleavedAttendTest, WithClampedDistances) {
  Compare(MixedHeads(card_, 0, 2, PositionPolicy::kClamped), true);
}

TEST_F(InterleavedAttendTest, ManyRowsTakeTwoPasses) {
  AttendCase made = MixedHeads(card_, 0, 1, PositionPolicy::kAsStored);
  made.SetTopK(1 << 14);  // 6 heads retrieve all of 2,800 rows each
  Compare(made, false);
}

}  // namespace
}  // namespace mneme
