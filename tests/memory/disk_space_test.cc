// SPDX-License-Identifier: Apache-2.0
// Disk in proportion: drops and forks of many small memories are cheap, and files stay in proportion to the rows.

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/memory/testing.h"

namespace mneme {
namespace {

// RocksDB deletes files some time after they became obsolete.
uint64_t DiskUsageBelow(const std::string& folder, uint64_t most) {
  uint64_t bytes = DiskUsage(folder);
  for (int i = 0; i < 100 && bytes > most; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    bytes = DiskUsage(folder);
  }
  return bytes;
}

class DiskSpaceTest : public testing::Test {
 protected:
  std::shared_ptr<Memory> New(const std::string& name, int64_t tokens) {
    absl::StatusOr<std::shared_ptr<Memory>> memory = store_->CreateMemory(name, card_, MemoryOptions());
    EXPECT_OK(memory.status());
    for (const LayerCard& layer : card_.layers) {
      EXPECT_OK((*memory)->Append(layer.layer, KeysOf(1, layer, 0, tokens).tensor, ValuesOf(1, layer, 0, tokens).tensor,
                                  nullptr, nullptr));
    }
    EXPECT_OK((*memory)->Commit(Durability::kBuffered, nullptr));
    return *memory;
  }
  void Make(const std::string& name, int64_t tokens) { EXPECT_OK(store_->CloseMemory(New(name, tokens))); }

  int64_t Files() const {
    int64_t files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.store())) files += entry.is_regular_file();
    return files;
  }

  TempFolder folder_;
  const ModelCard card_ = UnequalCard();
  std::unique_ptr<Store> store_ = OpenStore(folder_.store());
};

TEST_F(DiskSpaceTest, ManySmallDropsAreCheapAndFreeTheirDisk) {
  constexpr int kMemories = 1000;
  Make("kept", 100);
  for (int i = 0; i < kMemories; ++i) Make(absl::StrCat(i), 60);
  const uint64_t full = DiskUsage(folder_.store());
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kMemories; ++i) ASSERT_OK(store_->DropMemory(absl::StrCat(i)));
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  const uint64_t left = DiskUsageBelow(folder_.store(), uint64_t{3} << 20);
  std::printf("%d drops: %.3f ms each; %.1f of %.1f MiB left in %lld files\n", kMemories, ms / kMemories,
              static_cast<double>(left) / (1 << 20), static_cast<double>(full) / (1 << 20),
              static_cast<long long>(Files()));
  ASSERT_GE(full, uint64_t{8} << 20);
  EXPECT_LE(left, uint64_t{3} << 20) << "while the store is open";
  EXPECT_LE(Files(), 30);
  EXPECT_LE(ms / kMemories, 5) << "ten times what it takes on a slow device";
  store_.reset();
  store_ = OpenStore(folder_.store());
  EXPECT_EQ(store_->Stats()->database.memory_count, 1u);
  EXPECT_EQ(store_->Stats()->database.orphans_collected, 0u);
}

TEST_F(DiskSpaceTest, ManySmallForksWriteNoFilesOfTheirOwn) {
  constexpr int kForks = 500;
  const std::shared_ptr<Memory> parent = New("parent", 20);
  const int64_t files = Files();
  for (int i = 0; i < kForks; ++i) {
    absl::StatusOr<std::shared_ptr<Memory>> fork = store_->ForkMemory(parent, 10 + i % 11, absl::StrCat(i));
    ASSERT_OK(fork.status());
    ASSERT_EQ((*fork)->Info().next_token, 10 + i % 11);
    ASSERT_OK(store_->CloseMemory(*fork));
  }
  EXPECT_LE(Files(), files + 10);
  // A fork does not depend on its parent, which can be dropped.
  ASSERT_OK(store_->CloseMemory(parent));
  ASSERT_OK(store_->DropMemory("parent"));
  store_.reset();
  store_ = OpenStore(folder_.store());
  const std::shared_ptr<Memory> fork = *store_->OpenMemory("7", nullptr);
  const LayerCard& layer = card_.layers[0];
  std::vector<float> keys(static_cast<size_t>(17 * layer.kv_heads * layer.key_dim));
  ReadRequest request{layer.layer, 0, 17, {}, {}, nullptr, nullptr};
  request.keys = {keys.data(),  DType::kF32, 17, layer.kv_heads, layer.key_dim, layer.kv_heads * layer.key_dim,
                  layer.key_dim};
  ASSERT_OK(fork->Read(request));
  const Rows wanted = KeysOf(1, layer, 0, 17);
  const auto* expected = reinterpret_cast<const float*>(wanted.bytes.data());
  for (size_t i = 0; i < keys.size(); ++i) ASSERT_NEAR(keys[i], expected[i], 0.01f * (1 + std::abs(expected[i]))) << i;
  ASSERT_OK(store_->CloseMemory(fork));
}

TEST_F(DiskSpaceTest, ABatchDropsAllOrNone) {
  for (const char* name : {"a", "b", "c"}) Make(name, 5);
  const std::shared_ptr<Memory> open = *store_->OpenMemory("b", nullptr);
  const absl::Status refused = store_->DropMemories({"a", "b", "c"});
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_TRUE(absl::StrContains(refused.message(), "\"b\""));
  EXPECT_TRUE(absl::IsNotFound(store_->DropMemories({"a", "none"})));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->DropMemories({"a", "a"})));
  EXPECT_EQ(store_->Stats()->database.memory_count, 3u);
  ASSERT_OK(store_->CloseMemory(open));
  EXPECT_OK(store_->DropMemories({}));
  EXPECT_OK(store_->DropMemories({"a", "b", "c"}));
  EXPECT_EQ(store_->Stats()->database.memory_count, 0u);
}

TEST_F(DiskSpaceTest, EvictedAndTruncatedRowsOfShortMemoriesFreeTheirDisk) {
  constexpr int kMemories = 100;
  for (const bool evict : {true, false}) {
    SCOPED_TRACE(evict ? "evict" : "truncate");
    for (int i = 0; i < kMemories; ++i) Make(absl::StrCat(i), 200);
    const uint64_t full = DiskUsage(folder_.store());
    for (int i = 0; i < kMemories; ++i) {
      const std::shared_ptr<Memory> memory = *store_->OpenMemory(absl::StrCat(i), nullptr);
      if (evict) {
        ASSERT_OK(memory->Evict(5));
      } else {
        ASSERT_OK(memory->Truncate(5));
        ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
      }
      EXPECT_EQ(memory->Info().tokens, 5);
      EXPECT_EQ(memory->Info().next_token, evict ? 200 : 5);
      ASSERT_OK(store_->CloseMemory(memory));
    }
    EXPECT_LE(DiskUsageBelow(folder_.store(), full / 2), full / 2) << "of " << full;
    for (int i = 0; i < kMemories; ++i) ASSERT_OK(store_->DropMemory(absl::StrCat(i)));
  }
}

TEST_F(DiskSpaceTest, ADiskBudgetFreesDroppedMemories) {
  for (int i = 0; i < 100; ++i) Make(absl::StrCat(i), 60);
  for (int i = 0; i < 100; ++i) ASSERT_OK(store_->DropMemory(absl::StrCat(i)));  // less than is collected by itself
  store_.reset();
  store_ = OpenStore(folder_.store());
  StoreOptions options;
  options.disk_budget_bytes = static_cast<int64_t>(DiskUsage(folder_.store())) + (int64_t{700} << 10);
  store_.reset();
  store_ = OpenStore(folder_.store(), options);
  // One round fits into the budget; twenty fit only if each frees the disk of the last.
  for (int round = 0; round < 20; ++round) {
    Make("round", 300);
    ASSERT_OK(store_->DropMemory("round"));
    for (int i = 0; i < 10; ++i) Make(absl::StrCat("small", i), 20);
    for (int i = 0; i < 10; ++i) ASSERT_OK(store_->DropMemory(absl::StrCat("small", i)));
  }
}

}  // namespace
}  // namespace mneme
