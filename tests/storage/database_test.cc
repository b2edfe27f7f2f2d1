// SPDX-License-Identifier: Apache-2.0
#include "storage/database.h"

#include <algorithm>
#include <random>
#include <thread>

#include "absl/strings/match.h"

#include "tests/storage/testing.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DatabaseTest : public ::testing::Test {
 protected:
  DatabaseTest() : database_(OpenOrDie(folder_.store())) {}

  void Reopen() {
    database_.reset();
    database_ = OpenOrDie(folder_.store());
  }

  TempFolder folder_;
  std::unique_ptr<Database> database_;
};

TEST_F(DatabaseTest, ManifestsComeBackByNameInOrder) {
  const std::string odd("\x01\xff\0z", 4);
  for (const std::string& name : {std::string("b"), std::string("a"), odd, std::string(255, 'x')}) {
    auto transaction = database_->Begin();
    MemoryManifest manifest = MakeManifest(name);
    manifest.generation = name.size();
    ASSERT_OK(transaction->PutManifest(manifest));
    ASSERT_OK(transaction->Commit(Durability::kBuffered));
  }
  for (int reopened = 0; reopened < 2; ++reopened) {
    EXPECT_THAT(*database_->ListMemories(), ElementsAre(odd, "a", "b", std::string(255, 'x')));
    EXPECT_EQ(database_->ReadManifest(odd)->generation, 4u);
    EXPECT_TRUE(absl::IsNotFound(database_->ReadManifest("c").status()));
    EXPECT_EQ(database_->Stats()->memory_count, 4u);
    Reopen();
  }
  auto transaction = database_->Begin();
  ASSERT_OK(transaction->DeleteManifest("a"));
  ASSERT_OK(transaction->Commit(Durability::kSynced));
  EXPECT_TRUE(absl::IsNotFound(database_->ReadManifest("a").status()));
}

TEST_F(DatabaseTest, RowsComeBackFromAnyRangeOfChunks) {
  constexpr int64_t kRows = 1000;
  const SegmentId segment = CommitChunked(*database_, "m", kRows);
  const std::string keys = RowBytesOf(segment, kTestKeys, 0, kRows, kTestRowBytes);
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  for (int reopened = 0; reopened < 2; ++reopened) {
    for (int trial = 0; trial < 100; ++trial) {
      const int64_t begin = static_cast<int64_t>(random() % kRows);
      const int64_t end = begin + static_cast<int64_t>(random() % (kRows - begin + 1));
      const auto rows = ReadRows(*database_, segment, kTestKeys, begin, end);
      ASSERT_TRUE(rows.ok()) << rows.status();
      EXPECT_EQ(*rows, keys.substr(begin * kTestRowBytes, (end - begin) * kTestRowBytes));
    }
    Reopen();
  }
}

TEST_F(DatabaseTest, MissingRowsAreNamed) {
  const SegmentId segment = CommitChunked(*database_, "m", 300);
  absl::Status status = ReadRows(*database_, segment, kTestValues, 290, 301).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("segment ", segment, " layer 0 head 0 values chunk 1")));
  status = ReadRows(*database_, segment, kTestValues, 512, 513).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("values chunk 2 (rows 512 to 767): missing"));
  EXPECT_TRUE(absl::IsDataLoss(ReadRows(*database_, segment, kTestValues, 0, 1, 64).status()));
  EXPECT_TRUE(absl::IsDataLoss(ReadRows(*database_, segment + 1, kTestValues, 0, 1).status()));
}

TEST_F(DatabaseTest, ABufferOfTheWrongSizeIsRefused) {
  char buffer[256];
  for (const auto& [begin, end, row_bytes, size] : {std::tuple<int64_t, int64_t, size_t, size_t>{0, 2, 128, 255},
                                                    {0, 1, 128, 256},
                                                    {-1, 1, 128, 256},
                                                    {2, 0, 128, 256},
                                                    {0, 2, 0, 256},
                                                    {0, INT64_MAX, 128, 256}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        database_->ReadChunkRows(1, kTestKeys, begin, end, row_bytes, absl::MakeSpan(buffer, size))));
  }
}

TEST_F(DatabaseTest, AChunkWrittenAgainReplacesTheOld) {
  const SegmentId segment = CommitChunked(*database_, "m", 100);
  auto transaction = database_->Begin();
  const std::string longer = RowBytesOf(segment, kTestKeys, 0, 256, kTestRowBytes);
  ASSERT_OK(transaction->PutChunk(segment, kTestKeys, 0, longer, kTestRowBytes));
  ASSERT_OK(transaction->Commit(Durability::kSynced));
  EXPECT_EQ(*ReadRows(*database_, segment, kTestKeys, 0, 256), longer);
}

TEST_F(DatabaseTest, LogRecordsComeBackByLayerInRowOrder) {
  auto transaction = database_->Begin();
  const SegmentId segment = database_->NewSegmentId();
  for (const int64_t row : {300, 0, 5, 299}) {
    for (const int32_t layer : {-1, 0, 7}) {
      ASSERT_OK(transaction->PutLog(segment, layer, row, 1, absl::StrCat("row ", row, " layer ", layer)));
    }
  }
  ASSERT_OK(transaction->PutLog(segment, 7, 6, 290, std::string("many")));
  ASSERT_OK(transaction->PutLog(segment + 1, 7, 1, 1, std::string("another's")));
  ASSERT_OK(
      transaction->PutManifest(MakeManifest("m", {{segment, 0, 301, 0, false}, {segment + 1, 301, 2, 0, false}})));
  ASSERT_OK(transaction->Commit(Durability::kBuffered));

  for (int reopened = 0; reopened < 2; ++reopened) {
    for (const int32_t layer : {-1, 0}) {
      const auto records = database_->ReadLogs(segment, layer);
      ASSERT_TRUE(records.ok()) << records.status();
      ASSERT_EQ(records->size(), 4u);
      EXPECT_EQ((*records)[1].first_row, 5);
      EXPECT_EQ((*records)[3].bytes, absl::StrCat("row 300 layer ", layer));
    }
    const auto records = database_->ReadLogs(segment, 7);
    ASSERT_EQ(records->size(), 5u);
    EXPECT_EQ((*records)[2].first_row, 6);
    EXPECT_EQ((*records)[2].rows, 290);
    EXPECT_THAT(*database_->ReadLogs(segment, 3), IsEmpty());
    EXPECT_THAT(*database_->ReadLogs(segment + 9, 0), IsEmpty());
    Reopen();
  }

  transaction = database_->Begin();
  ASSERT_OK(transaction->DeleteLogs(segment, 299));
  ASSERT_OK(transaction->Commit(Durability::kBuffered));
  EXPECT_EQ(database_->ReadLogs(segment, 7)->size(), 2u);
  EXPECT_EQ(database_->ReadLogs(segment, -1)->size(), 2u);
  EXPECT_EQ(database_->ReadLogs(segment + 1, 7)->size(), 1u);
}

TEST_F(DatabaseTest, NothingIsSeenBeforeTheCommit) {
  const SegmentId segment = database_->NewSegmentId();
  {
    auto transaction = database_->Begin();
    ASSERT_OK(transaction->PutLog(segment, 0, 0, 1, std::string("x")));
    ASSERT_OK(transaction->PutManifest(MakeManifest("m", {{segment, 0, 1, 0, false}})));
    EXPECT_THAT(*database_->ReadLogs(segment, 0), IsEmpty());
    EXPECT_THAT(*database_->ListMemories(), IsEmpty());
  }
  EXPECT_THAT(*database_->ListMemories(), IsEmpty());
}

TEST_F(DatabaseTest, AStepThatFailsEndsTheTransaction) {
  const std::string rows(kTestRowBytes * 257, 'r');
  const std::string row = rows.substr(0, kTestRowBytes);
  std::function<absl::Status(Transaction&)> bad_steps[] = {
      [&](Transaction& t) { return t.PutChunk(0, kTestKeys, 0, row, kTestRowBytes); },
      [&](Transaction& t) {
        return t.PutChunk(1, {-1, 0, ColumnKind::kKeys}, 0, row, kTestRowBytes);
      },
      [&](Transaction& t) {
        return t.PutChunk(1, {0, -1, ColumnKind::kKeys}, 0, row, kTestRowBytes);
      },
      [&](Transaction& t) { return t.PutChunk(1, kTestKeys, -1, row, kTestRowBytes); },
      [&](Transaction& t) { return t.PutChunk(1, kTestKeys, 0, row, 0); },
      [&](Transaction& t) { return t.PutChunk(1, kTestKeys, 0, row, 100); },
      [&](Transaction& t) { return t.PutChunk(1, kTestKeys, 0, {}, kTestRowBytes); },
      [&](Transaction& t) { return t.PutChunk(1, kTestKeys, 0, rows, kTestRowBytes); },
      [&](Transaction& t) { return t.PutChunk(1, kTestKeys, 0, row, size_t{2} << 20); },
      [&](Transaction& t) { return t.PutLog(0, 0, 0, 1, row); },
      [&](Transaction& t) { return t.PutLog(1, -2, 0, 1, row); },
      [&](Transaction& t) { return t.PutLog(1, 0, -1, 1, row); },
      [&](Transaction& t) { return t.PutLog(1, 0, 0, 0, row); },
      [&](Transaction& t) { return t.DeleteLogs(0, 0); },
      [&](Transaction& t) { return t.DeleteLogs(1, -1); },
      [&](Transaction& t) { return t.PutManifest(MakeManifest("")); },
      [&](Transaction& t) { return t.PutManifest(MakeManifest(std::string(256, 'n'))); },
  };
  int number = 0;
  for (const auto& step : bad_steps) {
    SCOPED_TRACE(absl::StrCat("case ", number++));
    auto transaction = database_->Begin();
    ASSERT_OK(transaction->PutManifest(MakeManifest("m")));
    EXPECT_TRUE(absl::IsInvalidArgument(step(*transaction)));
    EXPECT_TRUE(absl::IsFailedPrecondition(transaction->Commit(Durability::kBuffered)));
    EXPECT_THAT(*database_->ListMemories(), IsEmpty());
  }
  auto transaction = database_->Begin();
  ASSERT_OK(transaction->Commit(Durability::kSynced));
  EXPECT_TRUE(absl::IsFailedPrecondition(transaction->Commit(Durability::kSynced)));
  EXPECT_TRUE(absl::IsFailedPrecondition(transaction->PutManifest(MakeManifest("m"))));
}

TEST_F(DatabaseTest, IdsAreNeverGivenTwice) {
  SegmentId last_segment = 0;
  IndexId last_index = 0;
  for (int round = 0; round < 5; ++round) {
    const SegmentId segment = CommitChunked(*database_, "m", 1);
    EXPECT_GT(segment, last_segment);
    const IndexId index = database_->NewIndexId();
    EXPECT_GT(index, last_index);
    last_segment = segment;
    last_index = index;
    // The next open finds no trace of the id but the record of used ids.
    auto transaction = database_->Begin();
    ASSERT_OK(transaction->DeleteManifest("m"));
    ASSERT_OK(transaction->Commit(Durability::kSynced));
    ASSERT_OK(database_->DropSegments({segment}));
    for (int i = 0; i < 700; ++i) last_segment = database_->NewSegmentId();
    transaction = database_->Begin();
    ASSERT_OK(transaction->Commit(Durability::kBuffered));
    Reopen();
  }
}

TEST_F(DatabaseTest, IndexBlobsOfAnySizeComeBackAndAreReplaced) {
  const IndexId index = database_->NewIndexId();
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  MemoryManifest manifest = MakeManifest("m");
  manifest.indexes = {{index, 0, 100, "hnsw"}};
  EXPECT_TRUE(absl::IsNotFound(database_->GetIndexBlob(index, 0, 0).status()));
  for (const size_t size : {size_t{0}, size_t{1}, size_t{5000}, size_t{4} << 20, (size_t{9} << 20) + 17, size_t{100}}) {
    std::string blob(size, '\0');
    for (char& c : blob) c = static_cast<char>(random());
    ASSERT_OK(database_->PutIndexBlob(index, 2, 1, blob));
    EXPECT_TRUE(*database_->GetIndexBlob(index, 2, 1) == blob);
    auto transaction = database_->Begin();
    ASSERT_OK(transaction->PutManifest(manifest));
    ASSERT_OK(transaction->Commit(Durability::kBuffered));
    Reopen();
    const auto again = database_->GetIndexBlob(index, 2, 1);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_TRUE(*again == blob);
    EXPECT_TRUE(absl::IsNotFound(database_->GetIndexBlob(index, 2, 0).status()));
  }
  ASSERT_OK(database_->DropIndexes({index}));
  EXPECT_TRUE(absl::IsNotFound(database_->GetIndexBlob(index, 2, 1).status()));
  ASSERT_OK(database_->PutIndexBlob(index, 2, 1, "late"));  // of a search that still held it
  EXPECT_TRUE(absl::IsNotFound(database_->GetIndexBlob(index, 2, 1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(database_->PutIndexBlob(0, 0, 0, "x")));
  EXPECT_TRUE(absl::IsInvalidArgument(database_->PutIndexBlob(1, -1, 0, "x")));
}

TEST_F(DatabaseTest, VerifyReadsAllAndCanBeCancelled) {
  const SegmentId segment = CommitChunked(*database_, "m", 600);
  auto transaction = database_->Begin();
  ASSERT_OK(transaction->PutLog(segment, 0, 600, 2, std::string(512, 'l')));
  MemoryManifest manifest = *database_->ReadManifest("m");
  manifest.segments[0].rows = 602;
  ASSERT_OK(transaction->PutManifest(manifest));
  ASSERT_OK(transaction->Commit(Durability::kBuffered));

  uint64_t done = 0, total = 0;
  std::vector<absl::Status> damages;
  const auto damaged = [&](const absl::Status& status) { damages.push_back(status); };
  ASSERT_OK(database_->VerifyMemory(
      manifest,
      [&](uint64_t d, uint64_t t) {
        EXPECT_GE(d, done);
        done = d;
        total = t;
        return true;
      },
      damaged));
  EXPECT_EQ(done, total);
  EXPECT_EQ(total, 602 * 2 * kTestRowBytes);
  EXPECT_THAT(damages, IsEmpty());
  EXPECT_TRUE(absl::IsCancelled(database_->VerifyMemory(
      manifest, [](uint64_t, uint64_t) { return false; }, damaged)));

  manifest.segments[0].rows = 604;          // beyond the log
  manifest.segments[0].chunked_rows = 601;  // and one of these lies in no chunk
  manifest.has_token_ids = true;
  ASSERT_OK(database_->VerifyMemory(manifest, nullptr, damaged));
  // Keys and values of chunk 2, three chunks of each token column, logs of layers -1 and 0.
  EXPECT_EQ(damages.size(), 10u);
  const auto naming = [&](const std::string& what) {
    return std::count_if(damages.begin(), damages.end(),
                         [&](const absl::Status& status) { return absl::StrContains(status.message(), what); });
  };
  EXPECT_EQ(naming("positions chunk "), 3);
  EXPECT_EQ(naming("token ids chunk "), 3);
  EXPECT_EQ(naming("keys chunk 2 (rows 512 to 767)"), 1);
}

TEST_F(DatabaseTest, ManyThreadsCommitReadAndDropAtOnce) {
  constexpr int kThreads = 4;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const std::string name = absl::StrCat("memory ", t);
      SegmentId old = 0;
      for (int round = 0; round < 6; ++round) {
        const SegmentId segment = CommitChunked(*database_, name, 300);
        const auto manifest = database_->ReadManifest(name);
        ASSERT_TRUE(manifest.ok());
        ASSERT_EQ(manifest->segments[0].id, segment);
        ASSERT_EQ(*ReadRows(*database_, segment, kTestValues, 0, 300),
                  RowBytesOf(segment, kTestValues, 0, 300, kTestRowBytes));
        ASSERT_OK(database_->PutIndexBlob(segment, 0, 0, name));
        if (old != 0) {
          ASSERT_OK(database_->DropSegments({old}));
          ASSERT_OK(database_->DropIndexes({old}));
        }
        old = segment;
        ASSERT_TRUE(database_->Stats().ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(database_->ListMemories()->size(), static_cast<size_t>(kThreads));
}

}  // namespace
}  // namespace mneme
