// SPDX-License-Identifier: Apache-2.0
// Exact search from codes gives the same bits as exact search from keys.

#include <algorithm>
#include <utility>

#include "tests/memory/attend_call.h"

namespace mneme {
namespace {

constexpr uint64_t kOwner = 31;
constexpr int64_t kTokens = 3000;

class CodesTest : public ::testing::Test {
 protected:
  CodesTest() : store_(OpenStore(folder_.store())) {}

  // The same rows in segments of `segment_tokens`. Segments of 256 tokens are too small to be coded.
  std::shared_ptr<Memory> Create(const std::string& name, int64_t segment_tokens) {
    MemoryOptions options;
    options.segment_tokens = segment_tokens;
    options.pinned_tokens = 5;
    auto memory = store_->CreateMemory(name, card_, options);
    if (!memory.ok()) std::abort();
    for (int64_t token = 0; token < kTokens; token += 250) {
      AppendTokens(**memory, nullptr, kOwner, token, 250);
      if (!(*memory)->Commit(Durability::kBuffered, nullptr).ok()) std::abort();
    }
    return *memory;
  }

  int64_t ByCode() { return store_->Stats()->scanned.by_code; }

  // Attends to both memories several times, so that seeds are used and become outdated.
  void ExpectSame(Memory* coded, Memory* plain, TestRandom& random) {
    for (const PositionPolicy policy :
         {PositionPolicy::kAsStored, PositionPolicy::kFixedDistance, PositionPolicy::kClamped}) {
      for (size_t layer = 0; layer < card_.layers.size(); ++layer) {
        for (const int64_t queries : {1, 1, 70, 2}) {
          AttendCall call(random, MixedHeads(card_, layer, queries, policy));
          call.SetMemory(0, plain);
          ASSERT_OK(call.Run());
          const AttendResult expected = call.result();
          call.SetMemory(0, coded);
          for (int again = 0; again < 2; ++again) {
            ASSERT_OK(call.Run());
            ASSERT_TRUE(call.result() == expected)
                << "policy " << static_cast<int>(policy) << " layer " << layer << " queries " << queries;
          }
        }
      }
    }
  }

  const ModelCard card_ = UnequalCard();
  TempFolder folder_;
  std::unique_ptr<Store> store_;
};

TEST_F(CodesTest, SameBitsAsTheScanOfTheKeys) {
  TestRandom random(5);
  const std::shared_ptr<Memory> coded = Create("coded", 65536), plain = Create("plain", 256);
  const int64_t before = ByCode();
  ExpectSame(plain.get(), plain.get(), random);
  ASSERT_EQ(ByCode(), before) << "the memory to compare with was searched by codes as well";
  ExpectSame(coded.get(), plain.get(), random);
  EXPECT_GT(ByCode(), before + 1000 * kTokens);
  // Tokens that the last query retrieved may be evicted by now.
  for (Memory* memory : {coded.get(), plain.get()}) ASSERT_OK(memory->Evict(900));
  ExpectSame(coded.get(), plain.get(), random);
  for (Memory* memory : {coded.get(), plain.get()}) ASSERT_OK(memory->Truncate(kTokens - 200));
  ExpectSame(coded.get(), plain.get(), random);
  for (Memory* memory : {coded.get(), plain.get()}) AppendTokens(*memory, nullptr, kOwner + 1, kTokens - 200, 77);
  ExpectSame(coded.get(), plain.get(), random);
}

TEST_F(CodesTest, SnapshotsForksAndReopenedMemoriesGiveTheSameBits) {
  TestRandom random(6);
  std::shared_ptr<Memory> coded = Create("coded", 65536), plain = Create("plain", 256);
  ExpectSame(coded.get(), plain.get(), random);
  std::shared_ptr<Memory> coded_fork = *store_->ForkMemory(coded, 2100, "coded-fork");
  std::shared_ptr<Memory> plain_fork = *store_->ForkMemory(plain, 2100, "plain-fork");
  ExpectSame(coded_fork.get(), plain_fork.get(), random);
  for (std::shared_ptr<Memory>* memory : {&coded, &plain, &coded_fork, &plain_fork}) {
    const std::string name = (*memory)->name();
    ASSERT_OK(store_->CloseMemory(*memory));
    memory->reset();
    auto again = store_->OpenMemory(name, &card_);
    ASSERT_OK(again.status());
    *memory = *again;
  }
  ExpectSame(coded.get(), plain.get(), random);
  ExpectSame(coded_fork.get(), plain_fork.get(), random);
}

}  // namespace
}  // namespace mneme
