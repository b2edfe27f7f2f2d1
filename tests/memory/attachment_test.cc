// SPDX-License-Identifier: Apache-2.0
// Attachments live and die with the tokens that they describe.

#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/memory/testing.h"
#include "tests/storage/tamper.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

// Bytes that do not compress: larger than a piece of an index blob, so that several pieces are made.
std::string Bytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

class AttachmentTest : public testing::Test {
 protected:
  void Open(DatabaseOptions::Mode mode = DatabaseOptions::Mode::kReadWrite) {
    StoreOptions options;
    options.database.mode = mode;
    store_ = OpenStore(folder_.store(), options);
    memory_ = *store_->OpenMemory("m", nullptr);
  }
  void Close() {
    ASSERT_OK(store_->CloseMemory(memory_));
    memory_ = nullptr;
    store_ = nullptr;
  }
  void Reopen() {
    Close();
    Open();
  }
  void SetUp() override {
    store_ = OpenStore(folder_.store());
    memory_ = *store_->CreateMemory("m", UnequalCard(), MemoryOptions());
    AppendTokens(*memory_, nullptr, 1, 0, 300);
  }
  void TearDown() override {
    if (memory_ != nullptr) Close();
  }

  absl::Status Set(const std::string& name, std::optional<absl::string_view> bytes, int64_t tokens) {
    return memory_->SetAttachment(name, bytes, tokens);
  }
  void Commit() { ASSERT_OK(memory_->Commit(Durability::kBuffered, nullptr)); }
  static void ExpectHas(const Memory& memory, const std::string& name, const std::string& bytes, int64_t tokens) {
    const auto found = memory.GetAttachment(name);
    ASSERT_OK(found.status());
    EXPECT_TRUE(found->second == bytes);
    EXPECT_EQ(found->first.tokens, tokens);
    EXPECT_EQ(found->first.bytes, bytes.size());
  }
  static bool Lacks(const Memory& memory, const std::string& name) {
    return absl::IsNotFound(memory.GetAttachment(name).status());
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<Memory> memory_;
  const std::string large_ = Bytes(9 << 20, 1);
  const std::string small_ = Bytes(100, 2);
};

TEST_F(AttachmentTest, ComesBackAfterACommitAndNotWithoutOne) {
  ASSERT_OK(Set("large", large_, 300));
  ASSERT_OK(Set("small", small_, 0));
  ASSERT_OK(Set("empty", "", 7));
  ExpectHas(*memory_, "large", large_, 300);
  EXPECT_GE(memory_->Info().ram_bytes, static_cast<int64_t>(large_.size()));
  Commit();
  EXPECT_LT(memory_->Info().ram_bytes, static_cast<int64_t>(large_.size()));
  ASSERT_OK(Set("small", large_, 1));
  ASSERT_OK(Set("never committed", small_, 1));
  Reopen();
  ExpectHas(*memory_, "large", large_, 300);
  ExpectHas(*memory_, "small", small_, 0);
  ExpectHas(*memory_, "empty", "", 7);
  EXPECT_TRUE(Lacks(*memory_, "never committed"));
  EXPECT_EQ(memory_->Attachments().size(), 3u);
  EXPECT_EQ(memory_->Attachments()[0].name, "empty");
  EXPECT_EQ(memory_->Info().attachment_bytes, static_cast<int64_t>(large_.size() + small_.size()));
}

TEST_F(AttachmentTest, RefusesNamesAndTokensThatCannotBe) {
  EXPECT_TRUE(absl::IsInvalidArgument(Set("", small_, 0)));
  EXPECT_TRUE(absl::IsInvalidArgument(Set(std::string(256, 'n'), small_, 0)));
  EXPECT_TRUE(absl::IsOutOfRange(Set("n", small_, 301)));
  EXPECT_TRUE(absl::IsOutOfRange(Set("n", small_, -1)));
  for (int i = 0; i < 1024; ++i) ASSERT_OK(Set(std::to_string(i), small_, 0));
  EXPECT_TRUE(absl::IsResourceExhausted(Set("one more", small_, 0)));
  EXPECT_OK(Set("7", large_, 0));
  EXPECT_OK(Set("one more", std::nullopt, 0));
}

TEST_F(AttachmentTest, ReplacedAndRemovedBytesGiveTheirDiskBack) {
  ASSERT_OK(Set("a", large_, 300));
  Commit();
  const int64_t before = static_cast<int64_t>(store_->Stats()->database.disk_bytes);
  EXPECT_GE(before, static_cast<int64_t>(large_.size()));
  for (uint32_t i = 0; i < 5; ++i) {
    ASSERT_OK(Set("a", Bytes(large_.size(), 10 + i), 300));
    Commit();
  }
  Reopen();
  EXPECT_LT(static_cast<int64_t>(store_->Stats()->database.disk_bytes), before + (2 << 20));
  ASSERT_OK(Set("a", std::nullopt, 0));
  ASSERT_OK(Set("not there", std::nullopt, 0));
  Commit();
  Reopen();
  EXPECT_TRUE(Lacks(*memory_, "a"));
  EXPECT_LT(static_cast<int64_t>(store_->Stats()->database.disk_bytes), before - (8 << 20));
}

TEST_F(AttachmentTest, TruncationRemovesWhatDescribesLostTokens) {
  ASSERT_OK(Set("of 300", small_, 300));
  ASSERT_OK(Set("of 200", small_, 200));
  ASSERT_OK(Set("of none", small_, 0));
  Commit();
  ASSERT_OK(memory_->Truncate(200));
  EXPECT_TRUE(Lacks(*memory_, "of 300"));
  // As long as nothing is committed, the tokens and what describes them are there after a restart.
  Reopen();
  ExpectHas(*memory_, "of 300", small_, 300);
  ASSERT_OK(memory_->Truncate(200));
  AppendTokens(*memory_, nullptr, 2, 200, 100);
  Commit();
  Reopen();
  EXPECT_TRUE(Lacks(*memory_, "of 300"));
  ExpectHas(*memory_, "of 200", small_, 200);
  ExpectHas(*memory_, "of none", small_, 0);
}

TEST_F(AttachmentTest, SurvivesEvictionSealingAndMerging) {
  ASSERT_OK(Set("a", large_, 300));
  ASSERT_OK(memory_->Evict(10));
  AppendTokens(*memory_, nullptr, 1, 300, 5000);
  Commit();
  ASSERT_OK(memory_->Maintain(nullptr));
  Reopen();
  ExpectHas(*memory_, "a", large_, 300);
}

TEST_F(AttachmentTest, AForkSharesWhatDescribesItsTokens) {
  ASSERT_OK(Set("of 300", large_, 300));
  ASSERT_OK(Set("of 100", small_, 100));
  const std::shared_ptr<Memory> fork = *store_->ForkMemory(memory_, 300, "fork");
  const std::shared_ptr<Memory> shorter = *store_->ForkMemory(memory_, 299, "shorter");
  EXPECT_TRUE(Lacks(*shorter, "of 300"));
  ExpectHas(*shorter, "of 100", small_, 100);
  EXPECT_LT(static_cast<int64_t>(store_->Stats()->database.disk_bytes), 2 * static_cast<int64_t>(large_.size()));
  // Neither the parent's change nor its end takes the bytes from the fork.
  ASSERT_OK(Set("of 300", std::nullopt, 0));
  Commit();
  ExpectHas(*fork, "of 300", large_, 300);
  ASSERT_OK(store_->CloseMemory(shorter));
  ASSERT_OK(store_->CloseMemory(memory_));
  ASSERT_OK(store_->DropMemory("m"));
  ExpectHas(*fork, "of 300", large_, 300);
  ASSERT_OK(store_->CloseMemory(fork));
  store_ = nullptr;
  store_ = OpenStore(folder_.store());
  memory_ = *store_->OpenMemory("fork", nullptr);
  ExpectHas(*memory_, "of 300", large_, 300);
}

TEST_F(AttachmentTest, ADroppedMemoryLeavesNoByteOfIt) {
  ASSERT_OK(Set("a", large_, 300));
  Commit();
  Close();
  const auto found = [&] {
    for (const auto& entry : std::filesystem::directory_iterator(folder_.store())) {
      if (ReadFile(entry.path()).find(large_.substr(1 << 20, 64)) != std::string::npos) return true;
    }
    return false;
  };
  ASSERT_TRUE(found());
  {
    const std::unique_ptr<Store> store = OpenStore(folder_.store());
    ASSERT_OK(store->DropMemory("m"));
  }
  EXPECT_FALSE(found());
}

TEST_F(AttachmentTest, DamageIsFoundAndNeverServed) {
  ASSERT_OK(Set("a", large_, 300));
  Commit();
  Close();
  for (const auto& entry : std::filesystem::directory_iterator(folder_.store())) {
    std::string bytes = ReadFile(entry.path());
    const size_t at = bytes.find(large_.substr(5 << 20, 64));
    if (at == std::string::npos) continue;
    bytes[at] = static_cast<char>(bytes[at] ^ 1);
    WriteFile(entry.path(), bytes);
  }
  Open();
  const absl::Status status = memory_->GetAttachment("a").status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("attachment \"a\""));
  VerifyReport report;
  ASSERT_OK(store_->Verify(nullptr, &report));
  EXPECT_EQ(report.damaged_values, 1);
  EXPECT_EQ(report.damaged_memories, 1);
}

TEST_F(AttachmentTest, ABudgetCountsThem) {
  Commit();
  Close();
  StoreOptions options;
  options.disk_budget_bytes = 4 << 20;
  store_ = OpenStore(folder_.store(), options);
  memory_ = *store_->OpenMemory("m", nullptr);
  ASSERT_OK(Set("a", large_, 300));
  EXPECT_TRUE(absl::IsResourceExhausted(memory_->Commit(Durability::kBuffered, nullptr)));
  ASSERT_OK(Set("a", small_, 300));
  Commit();
  ExpectHas(*memory_, "a", small_, 300);
}

TEST_F(AttachmentTest, AReaderReadsItAndCannotSetIt) {
  ASSERT_OK(Set("a", large_, 300));
  Commit();
  Close();
  Open(DatabaseOptions::Mode::kReadOnly);
  ExpectHas(*memory_, "a", large_, 300);
  EXPECT_TRUE(absl::IsFailedPrecondition(Set("a", small_, 0)));
}

}  // namespace
}  // namespace mneme
