// SPDX-License-Identifier: Apache-2.0
// Bounds in tokens, RAM and disk.

#include <filesystem>
#include <optional>

#include "memory/segment/code_columns.h"
#include "tests/memory/attend_call.h"

namespace mneme {
namespace {

constexpr uint64_t kOwner = 31;

class BoundsTest : public ::testing::Test {
 protected:
  BoundsTest() : random_(4) { options_.segment_tokens = 256; }

  void Open(const StoreOptions& options = {}) { store_ = OpenStore(folder_.store(), options); }
  std::shared_ptr<Memory> Create(const std::string& name = "m") { return *store_->CreateMemory(name, card_, options_); }
  // Closes the store and opens it again, with memory "m".
  void Reopen(std::shared_ptr<Memory>& memory, const StoreOptions& options = {}) {
    ASSERT_OK(store_->CloseMemory(memory));
    memory.reset();
    store_.reset();
    Open(options);
    auto again = store_->OpenMemory("m", nullptr);
    ASSERT_OK(again.status());
    memory = *again;
  }
  void Append(Memory& memory, Oracle* oracle, int64_t begin, int64_t n) {
    for (int64_t token = begin; token < begin + n; token += 500) {
      AppendTokens(memory, oracle, kOwner, token, std::min<int64_t>(500, begin + n - token));
    }
  }
  AttendResult Result(Memory* memory) {
    TestRandom random(8);
    AttendCase made;
    made.layer = card_.layers[0];
    made.sequences = {{memory, nullptr, nullptr, 4, 2, 0, -1}};
    made.SetTopK(50);
    AttendCall call(random, made);
    EXPECT_OK(call.Run());
    return call.result();
  }

  TestRandom random_;
  ModelCard card_ = UnequalCard();
  MemoryOptions options_;
  TempFolder folder_;
  std::unique_ptr<Store> store_;
};

TEST_F(BoundsTest, EvictionTakesTheOldestTokensButPinnedOnes) {
  options_.max_tokens = 300;
  options_.pinned_tokens = 10;
  Open();
  auto memory = Create();
  Oracle oracle(card_, options_);
  uint64_t disk = 0;
  for (int64_t token = 0; token < 6000; token += 100) {
    AppendTokens(*memory, &oracle, kOwner, token, 100);
    const MemoryInfo info = memory->Info();
    EXPECT_EQ(info.next_token, token + 100);
    EXPECT_EQ(info.tokens, std::min<int64_t>(300, token + 100));
    EXPECT_EQ(info.first_kept, token + 100 <= 300 ? 0 : token + 100 - 290);
    ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
    EXPECT_LE(info.segments, 5);  // of the pinned, of the kept, one of each border
    if (token == 1900) disk = DiskUsage(folder_.path());
  }
  ExpectHolds(*memory, oracle);
  // Three times the tokens take the same disk, apart from logs that RocksDB has not trimmed yet.
  EXPECT_LE(DiskUsage(folder_.path()), disk + (uint64_t{4} << 20));
  Reopen(memory);
  ExpectHolds(*memory, oracle);
}

// A segment keeps its count of bytes until a part is loaded or released: columns, keys with values, codes made from
// keys, codes read from disk.
TEST_F(BoundsTest, RamBytesFollowLoadsAndReleases) {
  constexpr int64_t kRows = 2048, kSegments = 4;
  options_.segment_tokens = kRows;
  Open();
  auto memory = Create();
  for (int64_t segment = 0; segment < kSegments; ++segment) {
    Append(*memory, nullptr, segment * kRows, kRows);
    ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  }
  ASSERT_EQ(memory->Info().segments, kSegments);
  // Loads all rows of a layer's segment.
  const auto read = [&](size_t layer, int64_t segment) {
    EXPECT_OK(memory->Read({card_.layers[layer].layer, segment * kRows, kRows, {}, {}, nullptr, nullptr}));
  };
  const auto rows_bytes = [&](size_t layer) {
    const LayerCard& card = card_.layers[layer];
    return kRows * card.kv_heads *
           static_cast<int64_t>(RowBytes(options_.stored_dtype, card.key_dim) +
                                RowBytes(options_.stored_dtype, card.value_dim));
  };
  constexpr int64_t kColumnsBytes = kRows * static_cast<int64_t>(sizeof(int64_t) + sizeof(int32_t));
  const int64_t codes_bytes = kRows * card_.layers[0].kv_heads * card_.layers[0].key_dim;  // and a little more
  int64_t before = 0;
  const auto expect_more = [&](int64_t bytes) {
    const int64_t now = memory->Info().ram_bytes;
    EXPECT_GE(now, before + bytes);
    EXPECT_LE(now, before + bytes * 5 / 4 + (1 << 16));
    before = now;
  };
  Reopen(memory);
  expect_more(0);
  for (int64_t segment = 0; segment < kSegments; ++segment) {
    read(0, segment);
    expect_more(rows_bytes(0) + kColumnsBytes);
    read(1, segment);
    expect_more(rows_bytes(1));
  }
  Result(memory.get());  // of layer 0
  expect_more(kSegments * codes_bytes);
  expect_more(0);

  // A search that needs a few rows of a segment loads only its codes.
  StoreOptions options;
  options.row_read_cost = 1;
  Reopen(memory, options);
  for (int64_t segment = 0; segment < kSegments; ++segment) read(1, segment);
  before = memory->Info().ram_bytes;
  Result(memory.get());
  expect_more(kSegments * codes_bytes);
  read(0, 0);
  expect_more(rows_bytes(0));

  // The budget fits the rows of one segment: each segment that is read often enough replaces another.
  options = StoreOptions();
  options.ram_budget_bytes = static_cast<size_t>(rows_bytes(0));
  Reopen(memory, options);
  before = memory->Info().ram_bytes;
  for (int64_t segment = 0; segment < kSegments; ++segment) {
    for (int time = 0; time < 4; ++time) read(0, segment);
    EXPECT_GE(memory->Info().ram_bytes, before + rows_bytes(0) / 2 + kColumnsBytes);
    EXPECT_LE(memory->Info().ram_bytes, before + rows_bytes(0) * 3 / 2 + kSegments * kColumnsBytes);
  }
}

TEST_F(BoundsTest, ASmallRamBudgetChangesNoResult) {
  Open();
  auto memory = Create();
  Append(*memory, nullptr, 0, 8000);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  for (int64_t token = 8000; token < 14000; token += 250) {
    AppendTokens(*memory, nullptr, kOwner, token, 250);
    ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  }
  const AttendResult wanted = Result(memory.get());
  const int64_t all = memory->Info().ram_bytes;
  for (const int64_t budget : {int64_t{1}, all / 10, all / 2}) {
    SCOPED_TRACE(absl::StrCat("budget ", budget, " of ", all));
    StoreOptions options;
    options.ram_budget_bytes = static_cast<size_t>(budget);
    Reopen(memory, options);
    EXPECT_LT(memory->Info().ram_bytes, 1 << 20);  // nothing is read before it is asked for
    EXPECT_TRUE(Result(memory.get()) == wanted);
    EXPECT_TRUE(Result(memory.get()) == wanted);
    // The budget does not cover the tail, nor the entry that was used last.
    EXPECT_LE(store_->Stats()->ram_bytes, budget + all / 2);
  }
}

TEST_F(BoundsTest, ADiskBudgetRefusesCommitsAndLosesNoRows) {
  StoreOptions options;
  Open();
  options.disk_budget_bytes = static_cast<int64_t>(DiskUsage(folder_.store())) + (int64_t{12} << 20);
  store_.reset();
  Open(options);
  auto memory = Create();
  Oracle oracle(card_, options_);
  int64_t durable = 0;
  absl::Status status;
  while (oracle.Whole() < 100000) {
    AppendTokens(*memory, &oracle, kOwner, oracle.Whole(), 2000);
    status = memory->Commit(Durability::kBuffered, nullptr);
    if (!status.ok()) break;
    durable = oracle.Whole();
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_GT(durable, 0);
  EXPECT_LE(DiskUsage(folder_.store()), static_cast<uint64_t>(options.disk_budget_bytes) + (uint64_t{2} << 20));
  EXPECT_EQ(memory->Info().tokens_durable, durable);
  ExpectHolds(*memory, oracle);
  EXPECT_TRUE(absl::IsResourceExhausted(store_->ForkMemory(memory, 10, "fork").status()));
  // Eviction frees disk.
  ASSERT_OK(memory->Evict(600));
  oracle.Evict(600);
  for (int round = 0; round < 3; ++round) {
    AppendTokens(*memory, &oracle, kOwner, oracle.Whole(), 500);
    ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
    ASSERT_OK(memory->Evict(600));
    oracle.Evict(600);
  }
  ExpectHolds(*memory, oracle);
  Reopen(memory);
  ExpectHolds(*memory, oracle);
}

TEST_F(BoundsTest, DroppedAndEvictedRowsFreeTheirDisk) {
  Open();
  const uint64_t empty = DiskUsage(folder_.store());
  auto memory = Create();
  Append(*memory, nullptr, 0, 40000);
  ASSERT_OK(memory->Commit(Durability::kSynced, nullptr));
  auto other = Create("other");
  for (int64_t token = 0; token < 40000; token += 2000) {
    Append(*other, nullptr, token, 2000);
    ASSERT_OK(other->Commit(Durability::kSynced, nullptr));
  }
  const int64_t bytes = other->Info().bytes + CodeBytes(card_, 40000);
  const uint64_t full = DiskUsage(folder_.store());
  EXPECT_GE(full - empty, static_cast<uint64_t>(2 * other->Info().bytes));
  EXPECT_LE(static_cast<double>(full - empty), 1.1 * static_cast<double>(2 * bytes) + 4e6);

  ASSERT_OK(other->Evict(10000));
  const uint64_t evicted = DiskUsage(folder_.store());
  EXPECT_LE(static_cast<double>(evicted - empty), 1.1 * (1.25 * static_cast<double>(bytes)) + 4e6);

  // A snapshot keeps its rows on disk; the first change after its end frees them.
  auto fork = *store_->ForkMemory(memory, 40000, "fork");
  const auto row_bytes = static_cast<uint64_t>(fork->Info().bytes);
  ASSERT_OK(store_->CloseMemory(memory));
  memory.reset();
  ASSERT_OK(store_->DropMemory("m"));
  EXPECT_GE(DiskUsage(folder_.store()) - empty, row_bytes);
  {
    const Snapshot snapshot = fork->TakeSnapshot();
    ASSERT_OK(fork->Truncate(0));
    ASSERT_OK(fork->Commit(Durability::kBuffered, nullptr));
    EXPECT_GE(DiskUsage(folder_.store()) - empty, row_bytes);
  }
  ASSERT_OK(store_->CloseMemory(fork));
  fork.reset();
  EXPECT_LE(static_cast<double>(DiskUsage(folder_.store()) - empty), 1.1 * (0.25 * static_cast<double>(bytes)) + 4e6);
  ASSERT_OK(store_->CloseMemory(other));
  other.reset();
  ASSERT_OK(store_->DropMemory("other"));
  EXPECT_LE(DiskUsage(folder_.store()), empty + (uint64_t{4} << 20));
}

// The disk bytes of the files that hold chunks. The write-ahead log is left out, since RocksDB trims it late.
uint64_t RowFiles(const std::string& path) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (entry.path().extension() == ".blob") bytes += std::filesystem::file_size(entry.path());
  }
  return bytes;
}

// Tokens that a bounded memory evicts leave the disk as well: with pinned tokens, with segments that are large beside
// the bound, and with tokens that are appended in bulk or a few at a time.
TEST_F(BoundsTest, ABoundedMemoryTakesTheDiskOfItsBound) {
  card_ = MakeCard(2, 2, 64);
  options_.segment_tokens = 4096;
  options_.pinned_tokens = 16;
  Open();
  for (const int64_t bound : {17, 5000}) {
    for (const int64_t step : {100, 2000}) {
      SCOPED_TRACE(absl::StrCat("bound ", bound, ", commits of ", step));
      options_.max_tokens = bound;
      auto memory = Create(absl::StrCat("m", bound, "/", step));
      Oracle oracle(card_, options_);
      while (oracle.Whole() < 10000) {
        AppendTokens(*memory, &oracle, kOwner, oracle.Whole(), step);
        ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
      }
      ExpectHolds(*memory, oracle);
      EXPECT_EQ(memory->Info().tokens, bound);
      // One segment may hold a single row, and the tail holds rows that fill no segment.
      const int64_t segment = std::max<int64_t>(step, 512);
      const int64_t token_bytes = memory->Info().bytes / bound + CodeBytes(card_, 65536) / 65536;
      EXPECT_LE(RowFiles(folder_.store()), static_cast<uint64_t>(token_bytes * (bound + 2 * segment)) * 105 / 100);
      ASSERT_OK(store_->CloseMemory(memory));
      memory.reset();
      ASSERT_OK(store_->DropMemory(absl::StrCat("m", bound, "/", step)));
      EXPECT_EQ(RowFiles(folder_.store()), 0u);
    }
  }
}

TEST_F(BoundsTest, EvictingMostOfASegmentFreesItsDisk) {
  card_ = MakeCard(2, 2, 64);
  options_.segment_tokens = 8192;
  options_.pinned_tokens = 20;
  Open();
  auto memory = Create();
  Oracle oracle(card_, options_);
  AppendTokens(*memory, &oracle, kOwner, 0, 8192);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  const uint64_t all = RowFiles(folder_.store());
  std::optional<Snapshot> snapshot = memory->TakeSnapshot();
  for (const int64_t keep : {6000, 3000, 500, 20}) {
    ASSERT_OK(memory->Evict(keep));
    oracle.Evict(keep);
    ExpectHolds(*memory, oracle);
    EXPECT_GE(RowFiles(folder_.store()), all) << "a snapshot still sees all rows";
  }
  snapshot.reset();
  ASSERT_OK(memory->Maintain(nullptr));
  EXPECT_LE(RowFiles(folder_.store()), all / 20);
  Reopen(memory);
  ExpectHolds(*memory, oracle);
}

// Each fork seals a few rows of its parent, which must not become a heap of small segments.
TEST_F(BoundsTest, ForksLeaveTheirParentFewSegments) {
  options_.segment_tokens = 4096;
  Open();
  auto memory = Create();
  Oracle oracle(card_, options_);
  for (int step = 0; step < 100; ++step) {
    AppendTokens(*memory, &oracle, kOwner, oracle.Whole(), 5);
    auto fork = store_->ForkMemory(memory, oracle.Whole() - 1, absl::StrCat("fork ", step));
    ASSERT_OK(fork.status());
    ASSERT_OK(store_->CloseMemory(*fork));
    ASSERT_LE(memory->Info().segments, 18);
  }
  ExpectHolds(*memory, oracle);
  oracle.Truncate(249);
  const auto fork = *store_->OpenMemory("fork 49", nullptr);
  ExpectHolds(*fork, oracle);
}

}  // namespace
}  // namespace mneme
