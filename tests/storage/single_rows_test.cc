// SPDX-License-Identifier: Apache-2.0
// Single rows out of chunks: the right ones, and little more is read than they need.

#include <fstream>
#include <random>

#include "storage/chunk.h"
#include "storage/keys.h"
#include "tests/storage/tamper.h"
#include "tests/storage/testing.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;
using Mode = DatabaseOptions::Mode;

// Bytes that this process has asked the kernel to read so far.
int64_t BytesRead() {
  std::ifstream io("/proc/self/io");
  std::string name;
  int64_t bytes = 0;
  io >> name >> bytes;
  EXPECT_EQ(name, "rchar:");
  return bytes;
}

// Rows of one column, as the whole memory "m".
SegmentId CommitColumn(Database& database, const Column& column, int64_t rows, size_t row_bytes) {
  const SegmentId segment = database.NewSegmentId();
  const std::unique_ptr<Transaction> transaction = database.Begin();
  for (int64_t row = 0; row < rows; row += kChunkRows) {
    const int64_t n = std::min(kChunkRows, rows - row);
    EXPECT_OK(transaction->PutChunk(segment, column, row / kChunkRows, RowBytesOf(segment, column, row, n, row_bytes),
                                    row_bytes));
  }
  EXPECT_OK(transaction->PutManifest(MakeManifest("m", {{segment, 0, rows, rows, true}})));
  EXPECT_OK(transaction->Commit(Durability::kSynced));
  return segment;
}

absl::StatusOr<std::string> ReadSingle(Database& database, SegmentId segment, const Column& column,
                                       const std::vector<int64_t>& which, size_t row_bytes = kTestRowBytes) {
  std::string rows(which.size() * row_bytes, '\0');
  const absl::Status status =
      database.ReadRows(segment, column, which, row_bytes, absl::MakeSpan(rows.data(), rows.size()));
  if (!status.ok()) return status;
  return rows;
}

// Sizes of rows that divide a sub-block, straddle two of them, fill several, and whose chunks are too small for a blob.
constexpr size_t kRowBytes[] = {1, 8, 12, 128, 132, 256, 260, 4096, 5000, 70000};

TEST(SingleRowsTest, GivesAnyRowsOfAnySizeInEveryMode) {
  std::mt19937_64 random(3);
  for (const size_t row_bytes : kRowBytes) {
    for (const int64_t rows : {1, 600}) {
      SCOPED_TRACE(absl::StrCat(rows, " rows of ", row_bytes, " bytes"));
      const TempFolder folder;
      const SegmentId segment = CommitColumn(*OpenOrDie(folder.store()), kTestValues, rows, row_bytes);
      for (const Mode mode : {Mode::kReadWrite, Mode::kReadOnly, Mode::kFollow}) {
        const auto database = OpenOrDie(folder.store(), mode);
        for (int trial = 0; trial < 10; ++trial) {
          std::vector<int64_t> which;
          const uint64_t one_in = 1 + random() % 60;
          for (int64_t row = 0; row < rows; ++row) {
            if (random() % one_in == 0) which.push_back(row);
          }
          std::string expected;
          for (const int64_t row : which) expected += RowBytesOf(segment, kTestValues, row, 1, row_bytes);
          if (random() % 2 == 0) database->WillReadRows(segment, kTestValues, which, row_bytes);
          const auto read = ReadSingle(*database, segment, kTestValues, which, row_bytes);
          ASSERT_OK(read.status());
          ASSERT_TRUE(*read == expected);
        }
      }
    }
  }
}

TEST(SingleRowsTest, RangesHoldTheHeaderAndTheRowsWhateverTheSizes) {
  std::mt19937_64 random(4);
  const std::string key = ChunkKey(1, kTestKeys, 0);
  for (int trial = 0; trial < 500; ++trial) {
    const int64_t rows = 1 + static_cast<int64_t>(random() % kChunkRows);
    const size_t row_bytes = 1 + random() % (trial % 10 == 0 ? 9000 : 300);
    const std::string bytes = RowBytesOf(1, kTestKeys, 0, rows, row_bytes);
    const std::string value = EncodeChunkHeader(key, bytes, row_bytes) + bytes;
    std::vector<int64_t> which;
    for (int64_t row = 0; row < rows; ++row) {
      if (random() % 20 == 0) which.push_back(row);
    }
    // Everything else is anything.
    std::string partial(value.size(), '\x5a');
    const size_t header = ChunkHeaderBytes(value.size());
    ASSERT_EQ(header, value.size() - bytes.size());
    partial.replace(0, header, value, 0, header);
    size_t before = header;
    for (const ByteRange& range : ChunkRanges(value.size(), row_bytes, which)) {
      ASSERT_GE(range.begin, before);
      ASSERT_LE(range.end, value.size());
      partial.replace(range.begin, range.end - range.begin, value, range.begin, range.end - range.begin);
      before = range.end;
    }
    std::string expected, read(which.size() * row_bytes, '\0');
    for (const int64_t row : which) expected += bytes.substr(static_cast<size_t>(row) * row_bytes, row_bytes);
    ASSERT_OK(DecodeChunkRows(key, partial, row_bytes, which, absl::MakeSpan(read.data(), read.size())));
    ASSERT_TRUE(read == expected);
  }
}

TEST(SingleRowsTest, ReadsLittleMoreThanTheRows) {
  constexpr size_t kBytes = 256;
  const TempFolder folder;
  const SegmentId segment = CommitColumn(*OpenOrDie(folder.store()), kTestKeys, 4096, kBytes);
  const auto database = OpenOrDie(folder.store());
  const auto cost = [&](const std::vector<int64_t>& which) {
    const int64_t before = BytesRead();
    EXPECT_TRUE(ReadSingle(*database, segment, kTestKeys, which, kBytes).ok());
    return BytesRead() - before;
  };
  cost({0, 300, 4000});  // opens files, fills the block cache
  // A chunk is 64 KiB; its header and a sub-block are 4180 bytes.
  EXPECT_LT(cost({1000}), 6000);
  EXPECT_LT(cost({1000, 1001, 1003}), 6000);
  EXPECT_LT(cost({10, 1000, 2000, 3000}), 24000);
  EXPECT_GT(cost({10, 1000, 2000, 3000}), 4 * 4096);
}

TEST(SingleRowsTest, DamageIsFoundWhereItIsReadAndNamed) {
  const TempFolder folder;
  const SegmentId segment = CommitColumn(*OpenOrDie(folder.store()), kTestKeys, 512, 256);
  fs::path blob;
  for (const auto& entry : fs::directory_iterator(folder.store())) {
    if (entry.path().extension() == ".blob") blob = entry.path();
  }
  std::string bytes = ReadFile(blob);
  const size_t at = bytes.find(RowBytesOf(segment, kTestKeys, 400, 1, 256));
  ASSERT_NE(at, std::string::npos);
  bytes[at + 255] ^= 1;
  WriteFile(blob, bytes);
  const auto database = OpenOrDie(folder.store());
  const absl::Status status = ReadSingle(*database, segment, kTestKeys, {3, 400}, 256).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("segment ", segment, " layer 0 head 0 keys chunk 1")));
  // In another sub-block of the same chunk.
  EXPECT_TRUE(ReadSingle(*database, segment, kTestKeys, {260, 500}, 256).ok());
}

TEST(SingleRowsTest, AShortFileIsDataLoss) {
  const TempFolder folder;
  const SegmentId segment = CommitColumn(*OpenOrDie(folder.store()), kTestKeys, 512, 256);
  for (const auto& entry : fs::directory_iterator(folder.store())) {
    if (entry.path().extension() == ".blob") fs::resize_file(entry.path(), fs::file_size(entry.path()) / 3);
  }
  DatabaseOptions options;
  const auto database = Database::Open(folder.store(), options);
  for (const int64_t row : {100, 255, 256, 511}) {
    const absl::Status status =
        database.ok() ? ReadSingle(**database, segment, kTestKeys, {row}, 256).status() : database.status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << row << ": " << status;
  }
}

TEST(SingleRowsTest, RefusesWhatItCannotAnswer) {
  const TempFolder folder;
  const auto database = OpenOrDie(folder.store());
  const SegmentId segment = CommitColumn(*database, kTestKeys, 300, 256);
  for (const std::vector<int64_t>& which : std::vector<std::vector<int64_t>>{{-1}, {5, 5}, {7, 6}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ReadSingle(*database, segment, kTestKeys, which, 256).status()));
  }
  EXPECT_TRUE(absl::IsDataLoss(ReadSingle(*database, segment, kTestKeys, {299, 300}, 256).status()));
  EXPECT_TRUE(absl::IsDataLoss(ReadSingle(*database, segment, kTestKeys, {512}, 256).status()));
  EXPECT_TRUE(absl::IsDataLoss(ReadSingle(*database, segment, kTestKeys, {1}, 128).status())) << "another row size";
  // What can be made again is not lost where it is missing.
  const Column codes{0, 0, ColumnKind::kCodes};
  EXPECT_TRUE(absl::IsNotFound(ReadSingle(*database, segment, codes, {1}, 256).status()));
  EXPECT_TRUE(absl::IsNotFound(ReadRows(*database, segment, codes, 0, 1, 256).status()));
}

}  // namespace
}  // namespace mneme
