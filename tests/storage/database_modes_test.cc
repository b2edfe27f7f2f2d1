// SPDX-License-Identifier: Apache-2.0
#include <fstream>

#include "base/checksum.h"
#include "rocksdb/table.h"
#include "storage/coding.h"
#include "storage/rocks.h"
#include "tests/storage/tamper.h"
#include "tests/storage/testing.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Mode = DatabaseOptions::Mode;

absl::Status OpenStatus(const std::string& path, Mode mode, bool create = true) {
  DatabaseOptions options;
  options.mode = mode;
  options.create_if_missing = create;
  return Database::Open(path, options).status();
}

TEST(DatabaseModesTest, WithoutAStoreThereIsNothingToOpen) {
  const TempFolder folder;
  EXPECT_TRUE(absl::IsNotFound(OpenStatus(folder.store(), Mode::kReadWrite, false)));
  EXPECT_TRUE(absl::IsNotFound(OpenStatus(folder.store(), Mode::kReadOnly)));
  EXPECT_TRUE(absl::IsNotFound(OpenStatus(folder.store(), Mode::kFollow)));
  EXPECT_FALSE(std::filesystem::exists(folder.store()));
  EXPECT_TRUE(absl::IsInvalidArgument(OpenStatus("", Mode::kReadWrite)));
  EXPECT_OK(OpenStatus(folder.path() + "/a/b/c", Mode::kReadWrite));
  EXPECT_OK(OpenStatus(folder.path() + "/a/b/c", Mode::kReadWrite, false));
}

TEST(DatabaseModesTest, AFileIsNoStore) {
  const TempFolder folder;
  std::ofstream(folder.store()) << "file";
  for (const Mode mode : {Mode::kReadWrite, Mode::kReadOnly, Mode::kFollow}) {
    EXPECT_TRUE(absl::IsInvalidArgument(OpenStatus(folder.store(), mode)));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(OpenStatus(folder.store() + "/below", Mode::kReadWrite)));
}

TEST(DatabaseModesTest, ASecondWriterIsRefused) {
  const TempFolder folder;
  const auto database = OpenOrDie(folder.store());
  const absl::Status status = OpenStatus(folder.store(), Mode::kReadWrite);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("store is open by another writer: " + folder.store()));
  // The other process's case is in recovery_test.cc.
}

TEST(DatabaseModesTest, AReaderSeesWhatWasCommittedWhenItOpened) {
  const TempFolder folder;
  const auto writer = OpenOrDie(folder.store());
  const SegmentId segment = CommitChunked(*writer, "m", 300);
  const auto reader = OpenOrDie(folder.store(), Mode::kReadOnly);
  CommitChunked(*writer, "later", 300);
  EXPECT_THAT(*reader->ListMemories(), ElementsAre("m"));
  EXPECT_EQ(*ReadRows(*reader, segment, kTestKeys, 0, 300), RowBytesOf(segment, kTestKeys, 0, 300, kTestRowBytes));
  EXPECT_OK(reader->CatchUp());
  EXPECT_THAT(*reader->ListMemories(), ElementsAre("m"));
}

TEST(DatabaseModesTest, AFollowerSeesNewCommitsAfterCatchUp) {
  const TempFolder folder;
  const auto writer = OpenOrDie(folder.store());
  const auto follower = OpenOrDie(folder.store(), Mode::kFollow);
  EXPECT_THAT(*follower->ListMemories(), IsEmpty());
  std::vector<std::string> names;
  for (int i = 0; i < 40; ++i) {
    names.push_back(absl::StrCat("m", 100 + i));
    const SegmentId segment = CommitChunked(*writer, names.back(), 300);
    auto transaction = writer->Begin();
    ASSERT_OK(transaction->PutLog(segment, 0, 300, 1, names.back()));
    ASSERT_OK(transaction->Commit(Durability::kBuffered));
    ASSERT_OK(follower->CatchUp());
    EXPECT_EQ(*follower->ListMemories(), names);
    const auto rows = ReadRows(*follower, segment, kTestValues, 0, 300);
    ASSERT_TRUE(rows.ok()) << rows.status();
    EXPECT_EQ(*rows, RowBytesOf(segment, kTestValues, 0, 300, kTestRowBytes));
    const auto records = follower->ReadLogs(segment, 0);
    ASSERT_EQ(records->size(), 1u);
    EXPECT_EQ((*records)[0].bytes, names.back());
  }
}

TEST(DatabaseModesTest, AFollowerOfDroppedRowsGetsAnErrorNotOtherRows) {
  const TempFolder folder;
  const auto writer = OpenOrDie(folder.store());
  const SegmentId segment = CommitChunked(*writer, "m", 300);
  const auto follower = OpenOrDie(folder.store(), Mode::kFollow);
  auto transaction = writer->Begin();
  ASSERT_OK(transaction->DeleteManifest("m"));
  ASSERT_OK(transaction->Commit(Durability::kSynced));
  ASSERT_OK(writer->DropSegments({segment}));
  EXPECT_FALSE(ReadRows(*follower, segment, kTestKeys, 0, 300).ok());
  ASSERT_OK(follower->CatchUp());
  EXPECT_THAT(*follower->ListMemories(), IsEmpty());
}

TEST(DatabaseModesTest, ReadersCannotWrite) {
  const TempFolder folder;
  const SegmentId segment = CommitChunked(*OpenOrDie(folder.store()), "m", 10);
  for (const Mode mode : {Mode::kReadOnly, Mode::kFollow}) {
    const auto reader = OpenOrDie(folder.store(), mode);
    const std::string row(kTestRowBytes, 'r');
    EXPECT_TRUE(absl::IsFailedPrecondition(reader->Begin()->PutChunk(segment, kTestKeys, 0, row, kTestRowBytes)));
    EXPECT_TRUE(absl::IsFailedPrecondition(reader->Begin()->PutLog(segment, 0, 0, 1, row)));
    EXPECT_TRUE(absl::IsFailedPrecondition(reader->Begin()->DeleteLogs(segment, 1)));
    EXPECT_TRUE(absl::IsFailedPrecondition(reader->Begin()->PutManifest(MakeManifest("n"))));
    EXPECT_TRUE(absl::IsFailedPrecondition(reader->Begin()->DeleteManifest("m")));
    EXPECT_TRUE(absl::IsFailedPrecondition(reader->Begin()->Commit(Durability::kSynced)));
    EXPECT_TRUE(absl::IsFailedPrecondition(reader->PutIndexBlob(1, 0, 0, "x")));
    EXPECT_TRUE(absl::IsFailedPrecondition(reader->DropSegments({segment})));
    EXPECT_TRUE(absl::IsFailedPrecondition(reader->DropIndexes({1})));
    EXPECT_EQ(*ReadRows(*reader, segment, kTestKeys, 0, 10), RowBytesOf(segment, kTestKeys, 0, 10, kTestRowBytes));
    EXPECT_TRUE(absl::IsNotFound(reader->GetIndexBlob(1, 0, 0).status()));
    EXPECT_EQ(reader->Stats()->memory_count, 1u);
  }
}

std::string VersionRecord(uint32_t version) {
  std::string value = "MNEM";
  AppendLittle(value, version);
  AppendLittle(value, Checksum32(value.data(), value.size()));
  return value;
}

TEST(DatabaseModesTest, ANewerFormatIsRefused) {
  for (const bool more_families : {false, true}) {
    const TempFolder folder;
    CommitChunked(*OpenOrDie(folder.store()), "m", 10);
    std::vector<std::string> names = {"default", "log", "rows", "index"};
    if (more_families) names.push_back("a later idea");
    Tamper(
        folder.store(),
        [](rocksdb::DB& db, rocksdb::ColumnFamilyHandle& family) {
          ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), &family, "v", VersionRecord(2)).ok());
        },
        names);
    for (const Mode mode : {Mode::kReadWrite, Mode::kReadOnly, Mode::kFollow}) {
      const absl::Status status = OpenStatus(folder.store(), mode);
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("newer mneme made this store (format 2"));
    }
  }
}

TEST(DatabaseModesTest, ADamagedVersionRecordIsDataLoss) {
  const TempFolder folder;
  OpenOrDie(folder.store());
  Tamper(folder.store(), [](rocksdb::DB& db, rocksdb::ColumnFamilyHandle& family) {
    std::string record = VersionRecord(1);
    record[4] ^= 2;
    ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), &family, "v", record).ok());
  });
  EXPECT_TRUE(absl::IsDataLoss(OpenStatus(folder.store(), Mode::kReadWrite)));
}

TEST(DatabaseModesTest, AnotherProgramsDatabaseIsLeftAlone) {
  for (const auto& names :
       {std::vector<std::string>{"default"}, {"default", "theirs"}, {"default", "log", "rows", "index"}}) {
    const TempFolder folder;
    Tamper(
        folder.store(),
        [](rocksdb::DB& db, rocksdb::ColumnFamilyHandle& family) {
          ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), &family, "theirs", "value").ok());
        },
        names);
    for (const Mode mode : {Mode::kReadWrite, Mode::kReadOnly, Mode::kFollow}) {
      const absl::Status status = OpenStatus(folder.store(), mode);
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("not a mneme store"));
    }
    std::vector<std::string> found;
    ASSERT_TRUE(rocksdb::DB::ListColumnFamilies(rocksdb::DBOptions(), folder.store(), &found).ok());
    EXPECT_EQ(found, names);
  }
}

// Its tables are not what the store's file system takes for sound.
TEST(DatabaseModesTest, NorIsOneWithTablesOfOtherSettings) {
  const TempFolder folder;
  rocksdb::Options settings;
  settings.create_if_missing = true;
  rocksdb::BlockBasedTableOptions table;
  table.format_version = 4;
  table.checksum = rocksdb::kCRC32c;
  settings.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  rocksdb::DB* raw = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(settings, folder.store(), &raw).ok());
  const std::unique_ptr<rocksdb::DB> db(raw);
  ASSERT_TRUE(db->Put(rocksdb::WriteOptions(), "theirs", "value").ok());
  ASSERT_TRUE(db->Flush(rocksdb::FlushOptions()).ok());
  ASSERT_TRUE(db->Close().ok());
  for (const Mode mode : {Mode::kReadWrite, Mode::kReadOnly, Mode::kFollow}) {
    const absl::Status status = OpenStatus(folder.store(), mode);
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("not a mneme store"));
  }
}

TEST(DatabaseModesTest, ACreationThatWasCutShortIsFinished) {
  for (const auto& names :
       {std::vector<std::string>{"default"}, {"default", "log"}, {"default", "log", "rows", "index"}}) {
    const TempFolder folder;
    Tamper(
        folder.store(), [](rocksdb::DB&, rocksdb::ColumnFamilyHandle&) {}, names);
    EXPECT_TRUE(absl::IsNotFound(OpenStatus(folder.store(), Mode::kReadOnly)));
    EXPECT_OK(OpenStatus(folder.store(), Mode::kReadWrite));
    EXPECT_OK(OpenStatus(folder.store(), Mode::kReadOnly));
  }
}

TEST(RocksTest, EveryErrorOfRocksDbHasOneOfOurs) {
  const std::pair<rocksdb::Status, absl::StatusCode> cases[] = {
      {rocksdb::Status::OK(), absl::StatusCode::kOk},
      {rocksdb::Status::NotFound(), absl::StatusCode::kNotFound},
      {rocksdb::Status::Corruption("c"), absl::StatusCode::kDataLoss},
      {rocksdb::Status::IOError("e"), absl::StatusCode::kUnavailable},
      {rocksdb::Status::NoSpace("full"), absl::StatusCode::kResourceExhausted},
      {rocksdb::Status::SpaceLimit(), absl::StatusCode::kResourceExhausted},
      {rocksdb::Status::PathNotFound("p"), absl::StatusCode::kNotFound},
      {rocksdb::Status::MemoryLimit(), absl::StatusCode::kResourceExhausted},
      {rocksdb::Status::Aborted(), absl::StatusCode::kAborted},
      {rocksdb::Status::Busy(), absl::StatusCode::kAborted},
      {rocksdb::Status::TryAgain(), absl::StatusCode::kAborted},
      {rocksdb::Status::TimedOut(), absl::StatusCode::kAborted},
      {rocksdb::Status::Incomplete(), absl::StatusCode::kUnavailable},
      {rocksdb::Status::ShutdownInProgress(), absl::StatusCode::kUnavailable},
      {rocksdb::Status::InvalidArgument("i"), absl::StatusCode::kInternal},
      {rocksdb::Status::NotSupported("n"), absl::StatusCode::kInternal},
  };
  for (const auto& [status, code] : cases) {
    const absl::Status mapped = FromRocks(status, "doing");
    EXPECT_EQ(mapped.code(), code) << status.ToString();
    if (!status.ok()) {
      EXPECT_THAT(std::string(mapped.message()), HasSubstr("doing: "));
    }
  }
  EXPECT_TRUE(absl::IsDataLoss(FromRocksRead(rocksdb::Status::PathNotFound("p"), "doing")));
  EXPECT_TRUE(absl::IsResourceExhausted(Guarded("doing", []() -> absl::Status { throw std::bad_alloc(); })));
  EXPECT_TRUE(absl::IsInternal(Guarded("doing", []() -> absl::Status { throw std::runtime_error("r"); })));
}

}  // namespace
}  // namespace mneme
