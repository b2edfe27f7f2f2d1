// SPDX-License-Identifier: Apache-2.0
#include "storage/chunk.h"

#include <random>

#include "storage/keys.h"
#include "storage/log_record.h"
#include "tests/storage/testing.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

const std::string kKey = ChunkKey(7, {3, 1, ColumnKind::kValues}, 2);

std::string Encode(const std::string& rows, size_t row_bytes) {
  return EncodeChunkHeader(kKey, rows, row_bytes) + rows;
}

absl::StatusOr<std::string> Decode(absl::string_view value, size_t row_bytes, int64_t begin, int64_t end,
                                   const std::string& key = kKey) {
  std::string rows(static_cast<size_t>(end - begin) * row_bytes, '\0');
  const absl::Status status =
      DecodeChunkRows(key, value, row_bytes, begin, end, absl::MakeSpan(rows.data(), rows.size()));
  if (!status.ok()) return status;
  return rows;
}

TEST(ChunkTest, GivesBackAnyRowsOfAnySize) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t rows = 1 + static_cast<int64_t>(random() % kChunkRows);
    const size_t row_bytes = 1 + random() % 700;
    std::string bytes(static_cast<size_t>(rows) * row_bytes, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    const std::string value = Encode(bytes, row_bytes);
    const int64_t begin = static_cast<int64_t>(random() % rows);
    const int64_t end = begin + 1 + static_cast<int64_t>(random() % (rows - begin));
    const auto decoded = Decode(value, row_bytes, begin, end);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, bytes.substr(begin * row_bytes, (end - begin) * row_bytes));
    EXPECT_OK(VerifyChunk(kKey, value, row_bytes, rows));
  }
}

TEST(ChunkTest, FindsEveryFlippedByteAndEveryTruncation) {
  const std::string rows = RowBytesOf(1, kTestKeys, 0, 100, 96);
  const std::string value = Encode(rows, 96);
  for (size_t i = 0; i < value.size(); ++i) {
    std::string bad = value;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    EXPECT_TRUE(absl::IsDataLoss(VerifyChunk(kKey, bad, 96, 100))) << "byte " << i;
    EXPECT_TRUE(absl::IsDataLoss(Decode(bad, 96, 0, 100).status())) << "byte " << i;
    EXPECT_TRUE(absl::IsDataLoss(Decode(value.substr(0, i), 96, 0, 1).status())) << "length " << i;
  }
  EXPECT_TRUE(absl::IsDataLoss(Decode(value + "x", 96, 0, 1).status()));
}

TEST(ChunkTest, DamageHidesOnlyTheSubBlocksItIsIn) {
  const std::string rows = RowBytesOf(1, kTestKeys, 0, 256, 128);  // 8 sub-blocks of 32 rows
  std::string value = Encode(rows, 128);
  value[value.size() - rows.size() + 3 * kSubBlockBytes + 5] ^= 1;
  EXPECT_EQ(*Decode(value, 128, 0, 96), rows.substr(0, 96 * 128));
  EXPECT_EQ(*Decode(value, 128, 128, 256), rows.substr(128 * 128));
  EXPECT_THAT(std::string(Decode(value, 128, 95, 97).status().message()), HasSubstr("sub-block 3"));
}

TEST(ChunkTest, IsTiedToItsKeyAndItsRowSize) {
  const std::string value = Encode(RowBytesOf(1, kTestKeys, 0, 16, 64), 64);
  EXPECT_TRUE(absl::IsDataLoss(Decode(value, 64, 0, 1, ChunkKey(8, {3, 1, ColumnKind::kValues}, 2)).status()));
  EXPECT_TRUE(absl::IsDataLoss(Decode(value, 64, 0, 1, ChunkKey(7, {3, 1, ColumnKind::kKeys}, 2)).status()));
  EXPECT_THAT(std::string(Decode(value, 32, 0, 1).status().message()), HasSubstr("rows of 64 bytes, expected 32"));
  EXPECT_THAT(std::string(Decode(value, 64, 10, 17).status().message()), HasSubstr("holds 16 rows"));
  EXPECT_THAT(std::string(VerifyChunk(kKey, value, 64, 17).message()), HasSubstr("holds 16 rows, expected 17"));
}

TEST(KeysTest, SortAsTheirNumbers) {
  EXPECT_LT(ChunkKey(1, {0, 0, ColumnKind::kTokenIds}, 300), ChunkKey(256, {0, 0, ColumnKind::kKeys}, 0));
  EXPECT_LT(ChunkKey(1, {2, 0, ColumnKind::kKeys}, 255), ChunkKey(1, {2, 0, ColumnKind::kKeys}, 256));
  EXPECT_LT(LogKey(1, 255, 4), LogKey(1, 256, -1));
  EXPECT_LT(LogKey(1, 255, -1), LogKey(1, 255, 0));
  EXPECT_LT(IndexKey(5, 1, 1, 0, 0), IndexKey(5, 1, 1, 1, 0));
  const auto parsed = ParseLogKey(LogKey(9, 12345678901, -1));
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->segment, 9u);
  EXPECT_EQ(parsed->first_row, 12345678901);
  EXPECT_EQ(parsed->layer, -1);
  EXPECT_FALSE(ParseLogKey("short").has_value());
  EXPECT_FALSE(ParseLogKey(std::string(20, '\xff')).has_value());
  EXPECT_FALSE(ParseOwner("short").has_value());
}

TEST(LogRecordTest, FindsEveryFlippedByteAndEveryTruncation) {
  const std::string key = LogKey(4, 77, 2);
  const std::string value = EncodeLogRecord(key, 3, std::string("some rows of all heads"));
  const auto record = DecodeLogRecord(key, value);
  ASSERT_TRUE(record.ok());
  EXPECT_EQ(record->first_row, 77);
  EXPECT_EQ(record->rows, 3);
  EXPECT_EQ(record->bytes, "some rows of all heads");
  for (size_t i = 0; i < value.size(); ++i) {
    std::string bad = value;
    bad[i] ^= 0x10;
    EXPECT_TRUE(absl::IsDataLoss(DecodeLogRecord(key, bad).status())) << "byte " << i;
    EXPECT_TRUE(absl::IsDataLoss(DecodeLogRecord(key, value.substr(0, i)).status())) << "length " << i;
  }
  EXPECT_TRUE(absl::IsDataLoss(DecodeLogRecord(LogKey(4, 78, 2), value).status()));
  EXPECT_TRUE(absl::IsDataLoss(DecodeLogRecord("bad key", value).status()));
  const std::string no_rows = EncodeLogRecord(key, 0, std::string("x"));
  EXPECT_TRUE(absl::IsDataLoss(DecodeLogRecord(key, no_rows).status()));
}

}  // namespace
}  // namespace mneme
