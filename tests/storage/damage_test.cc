// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <random>

#include "absl/strings/match.h"

#include "tests/storage/tamper.h"
#include "tests/storage/testing.h"

namespace mneme {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::vector<fs::path> FilesWith(const std::string& folder, const std::string& extension) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == extension) files.push_back(entry.path());
  }
  return files;
}

TEST(DamageTest, ADamagedBlobFileNamesTheChunk) {
  const TempFolder folder;
  const SegmentId segment = CommitChunked(*OpenOrDie(folder.store()), "m", 512);
  const std::vector<fs::path> blobs = FilesWith(folder.store(), ".blob");
  ASSERT_EQ(blobs.size(), 1u);
  // In the middle of the rows of chunk 1 of the values.
  std::string bytes = ReadFile(blobs[0]);
  const std::string row = RowBytesOf(segment, kTestValues, 400, 1, kTestRowBytes);
  const size_t at = bytes.find(row);
  ASSERT_NE(at, std::string::npos);
  bytes[at] ^= 1;
  WriteFile(blobs[0], bytes);

  const auto database = OpenOrDie(folder.store());
  const std::string name = absl::StrCat("segment ", segment, " layer 0 head 0 values chunk 1");
  const absl::Status status = ReadRows(*database, segment, kTestValues, 400, 401).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  EXPECT_TRUE(ReadRows(*database, segment, kTestValues, 0, 256).ok());
  EXPECT_TRUE(ReadRows(*database, segment, kTestKeys, 0, 512).ok());
  std::vector<std::string> damages;
  ASSERT_OK(database->VerifyMemory(*database->ReadManifest("m"), nullptr,
                                   [&](const absl::Status& damage) { damages.emplace_back(damage.message()); }));
  ASSERT_EQ(damages.size(), 1u);
  EXPECT_THAT(damages[0], HasSubstr(name));
  // The rest of the store goes on, and the damaged memory can be dropped.
  CommitChunked(*database, "n", 300);
  ASSERT_OK(database->DropSegments({segment}));
}

// Rows of 4 KiB and more lie in blob files, smaller ones in table files. Whatever is missing or short: an error of data
// that names the file, from open or from the read.
TEST(DamageTest, AMissingOrShortFileIsDataLossAndNamed) {
  for (const char* const extension : {".blob", ".sst"}) {
    for (const auto mode :
         {DatabaseOptions::Mode::kReadWrite, DatabaseOptions::Mode::kReadOnly, DatabaseOptions::Mode::kFollow}) {
      for (const int size : {-1, 0, 1000}) {
        SCOPED_TRACE(absl::StrCat(extension, " of ", size, " bytes, mode ", static_cast<int>(mode)));
        const TempFolder folder;
        const SegmentId segment = CommitChunked(*OpenOrDie(folder.store()), "m", 512);
        OpenOrDie(folder.store());  // from the log into tables
        const std::vector<fs::path> files = FilesWith(folder.store(), extension);
        ASSERT_GE(files.size(), 1u);
        for (const fs::path& file : files) {
          if (size < 0) {
            fs::remove(file);
          } else {
            fs::resize_file(file, static_cast<uintmax_t>(size));
          }
        }
        DatabaseOptions options;
        options.mode = mode;
        const auto database = Database::Open(folder.store(), options);
        const absl::Status status =
            database.ok() ? ReadRows(**database, segment, kTestKeys, 0, 1).status() : database.status();
        EXPECT_TRUE(absl::IsDataLoss(status)) << status;
        EXPECT_TRUE(std::any_of(files.begin(), files.end(), [&](const fs::path& file) {
          return absl::StrContains(status.message(), file.filename().string());
        })) << status;
      }
    }
  }
}

TEST(DamageTest, AStoreWithoutCurrentIsNotTakenForAnEmptyOne) {
  const TempFolder folder;
  CommitChunked(*OpenOrDie(folder.store()), "m", 300);
  fs::remove(fs::path(folder.store()) / "CURRENT");
  const absl::Status status = Database::Open(folder.store(), DatabaseOptions()).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_EQ(FilesWith(folder.store(), ".blob").size(), 1u);
}

TEST(DamageTest, NothingIsCollectedWhileAManifestIsDamaged) {
  const TempFolder folder;
  SegmentId segment = 0;
  {
    const auto database = OpenOrDie(folder.store());
    segment = CommitChunked(*database, "m", 300);
    CommitChunked(*database, "n", 300);
  }
  std::string good;
  Tamper(folder.store(), [&](rocksdb::DB& db, rocksdb::ColumnFamilyHandle& family) {
    ASSERT_TRUE(db.Get(rocksdb::ReadOptions(), &family, "mm", &good).ok());
    std::string bad = good;
    bad[30] ^= 1;
    ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), &family, "mm", bad).ok());
  });
  {
    std::vector<std::string> messages;
    DatabaseOptions options;
    options.log = [&](absl::string_view message) { messages.emplace_back(message); };
    const auto database = Database::Open(folder.store(), options);
    ASSERT_TRUE(database.ok()) << database.status();
    EXPECT_EQ((*database)->Stats()->orphans_collected, 0u);
    EXPECT_THAT(messages, Contains(HasSubstr("nothing is collected: manifest of memory 'm'")));
    const absl::Status status = (*database)->ReadManifest("m").status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("manifest of memory 'm': manifest: checksum differs"));
    EXPECT_TRUE(ReadRows(**database, segment, kTestKeys, 0, 300).ok());
    EXPECT_TRUE((*database)->ReadManifest("n").ok());
  }
  // A sound manifest under another name is damage, too.
  Tamper(folder.store(), [&](rocksdb::DB& db, rocksdb::ColumnFamilyHandle& family) {
    ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), &family, "mn", good).ok());
  });
  EXPECT_TRUE(absl::IsDataLoss(OpenOrDie(folder.store())->ReadManifest("n").status()));
}

TEST(DamageTest, ALostRecordOfUsedIdsIsMadeAnew) {
  const TempFolder folder;
  const SegmentId segment = CommitChunked(*OpenOrDie(folder.store()), "m", 300);
  Tamper(folder.store(), [&](rocksdb::DB& db, rocksdb::ColumnFamilyHandle& family) {
    ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), &family, "n", "damaged").ok());
  });
  EXPECT_GT(OpenOrDie(folder.store())->NewSegmentId(), segment);
}

// What is parsed has been checked before: RocksDB's own assertions would end the process.
TEST(DamageTest, ATableBlockIsCheckedBeforeItIsParsed) {
  const TempFolder folder;
  const SegmentId segment = CommitChunked(*OpenOrDie(folder.store()), "m", 512);
  OpenOrDie(folder.store());  // from the log into tables
  int damaged = 0;
  for (const fs::path& file : FilesWith(folder.store(), ".sst")) {
    const std::string bytes = ReadFile(file);
    // Of its first entry: bytes shared with the key before, bytes of the key, bytes of the value.
    for (const size_t at : {0, 1, 2}) {
      std::string flipped = bytes;
      flipped[at] ^= 0x10;
      WriteFile(file, flipped);
      DatabaseOptions options;
      options.mode = DatabaseOptions::Mode::kReadOnly;
      const auto database = Database::Open(folder.store(), options);
      const absl::Status status =
          database.ok() ? ReadRows(**database, segment, kTestKeys, 0, 1).status() : database.status();
      if (status.ok()) continue;  // a table of other families
      ++damaged;
      EXPECT_TRUE(absl::IsDataLoss(status)) << "byte " << at << ": " << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(file.filename().string()));
    }
    WriteFile(file, bytes);
  }
  EXPECT_GE(damaged, 3);
}

// Whatever byte of whatever file is changed: what is read is what was written, or an error.
TEST(DamageTest, NoFlippedByteIsServed) {
  const TempFolder folder;
  SegmentId segment = 0;
  std::string blob(20000, 'i');
  {
    auto database = OpenOrDie(folder.store());
    segment = CommitChunked(*database, "m", 300);
    auto transaction = database->Begin();
    ASSERT_OK(transaction->PutLog(segment, 0, 300, 2, std::string(512, 'l')));
    MemoryManifest manifest = MakeManifest("m", {{segment, 0, 302, 300, false}});
    manifest.indexes = {{1, 0, 300, "hnsw"}};
    ASSERT_OK(database->PutIndexBlob(1, 0, 0, blob));
    ASSERT_OK(transaction->PutManifest(manifest));
    ASSERT_OK(transaction->Commit(Durability::kSynced));
    database.reset();
    OpenOrDie(folder.store());  // from the log into tables
  }
  const std::string keys = RowBytesOf(segment, kTestKeys, 0, 300, kTestRowBytes);
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder.store())) files.push_back(entry.path());
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  const char* wanted = std::getenv("MNEME_FLIPS");
  const int flips = wanted != nullptr ? std::atoi(wanted) : 300;
  // An assertion in RocksDB leaves no time for a trace.
  static std::string doing;
  const auto before = std::signal(SIGABRT, [](int) { (void)!::write(STDERR_FILENO, doing.data(), doing.size()); });
  int refused = 0, errors = 0, right = 0;
  for (int flip = 0; flip < flips; ++flip) {
    const fs::path file = files[random() % files.size()];
    std::string bytes = ReadFile(file);
    if (bytes.empty()) continue;
    const size_t at = random() % bytes.size();
    const bool cut = random() % 8 == 0;
    const std::string what = absl::StrCat(cut ? "cut " : "flip ", file.filename().string(), " at ", at);
    SCOPED_TRACE(what);
    doing = what + "\n";
    const TempFolder copy;
    fs::copy(folder.store(), copy.store(), fs::copy_options::recursive);
    if (cut) {
      bytes.resize(at);
    } else {
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
    }
    WriteFile(fs::path(copy.store()) / file.filename(), bytes);
    DatabaseOptions options;
    options.mode = random() % 2 == 0 ? DatabaseOptions::Mode::kReadWrite : DatabaseOptions::Mode::kReadOnly;
    const auto database = Database::Open(copy.store(), options);
    if (!database.ok()) {
      ++refused;
      continue;
    }
    bool good = true;
    const auto manifest = (*database)->ReadManifest("m");
    good &= manifest.ok();
    if (manifest.ok()) {
      EXPECT_EQ(manifest->segments.size(), 1u);
    }
    const auto rows = ReadRows(**database, segment, kTestKeys, 0, 300);
    good &= rows.ok();
    if (rows.ok()) {
      EXPECT_TRUE(*rows == keys);
    }
    const auto records = (*database)->ReadLogs(segment, 0);
    good &= records.ok();
    if (records.ok() && !records->empty()) {
      EXPECT_EQ((*records)[0].bytes, std::string(512, 'l'));
    }
    const auto index = (*database)->GetIndexBlob(1, 0, 0);
    good &= index.ok();
    if (index.ok()) {
      EXPECT_TRUE(*index == blob);
    }
    ++(good ? right : errors);
  }
  std::signal(SIGABRT, before);
  std::printf("%d refused at open, %d with errors, %d all right\n", refused, errors, right);
}

}  // namespace
}  // namespace mneme
