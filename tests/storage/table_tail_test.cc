// SPDX-License-Identifier: Apache-2.0
#include "storage/table_tail.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>

#include "tests/storage/tamper.h"
#include "tests/storage/testing.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr size_t kFooterBytes = 53;

// A file's contents.
class File : public rocksdb::FSRandomAccessFile {
 public:
  explicit File(const std::string& bytes) : bytes_(bytes) {}
  rocksdb::IOStatus Read(uint64_t offset, size_t n, const rocksdb::IOOptions&, rocksdb::Slice* result, char* scratch,
                         rocksdb::IODebugContext*) const override {
    if (offset > bytes_.size() || n > bytes_.size() - offset) ADD_FAILURE() << n << " bytes at " << offset;
    n = std::min<size_t>(n, bytes_.size() - std::min<size_t>(offset, bytes_.size()));
    std::memcpy(scratch, bytes_.data() + offset, n);
    *result = rocksdb::Slice(scratch, n);
    return rocksdb::IOStatus::OK();
  }

 private:
  const std::string& bytes_;
};

rocksdb::IOStatus Check(const std::string& bytes) {
  return CheckTableTail("the.sst", File(bytes), bytes.size());
}

std::vector<std::string> Tables() {
  const TempFolder folder;
  CommitChunked(*OpenOrDie(folder.store()), "m", 300);
  OpenOrDie(folder.store());  // from the log into tables
  std::vector<std::string> tables;
  for (const auto& entry : fs::directory_iterator(folder.store())) {
    if (entry.path().extension() == ".sst") tables.push_back(ReadFile(entry.path()));
  }
  return tables;
}

TEST(TableTailTest, SoundTablesPass) {
  const std::vector<std::string> tables = Tables();
  EXPECT_GE(tables.size(), 2u);
  for (const std::string& table : tables) EXPECT_TRUE(Check(table).ok()) << Check(table).ToString();
}

TEST(TableTailTest, EveryFlippedBitFromThePropertiesOnIsFound) {
  for (const std::string& table : Tables()) {
    // Properties are sorted, and theirs is the first block that names one.
    const size_t properties = table.find("rocksdb.");
    ASSERT_LT(properties, table.size() - kFooterBytes);
    const size_t footer = table.size() - kFooterBytes;
    const size_t padding = table.find_last_not_of('\0', table.size() - 13) + 1;
    ASSERT_GT(padding, footer + 3);
    for (size_t at = properties; at < table.size(); ++at) {
      if (at >= padding && at < table.size() - 12) continue;  // nobody reads it
      for (int bit = 0; bit < 8; ++bit) {
        std::string damaged = table;
        damaged[at] ^= static_cast<char>(1 << bit);
        const rocksdb::IOStatus status = Check(damaged);
        // The place of the index is only looked at for being inside; RocksDB checks what lies there.
        if (at > footer && at < padding && status.ok()) continue;
        ASSERT_TRUE(status.IsCorruption()) << "byte " << at << " of " << table.size() << ": " << status.ToString();
        ASSERT_THAT(status.ToString(), HasSubstr("the.sst"));
      }
    }
  }
}

TEST(TableTailTest, AnyShorterFileIsDamaged) {
  const std::string table = Tables().front();
  for (size_t size = 0; size < table.size(); ++size) {
    EXPECT_TRUE(Check(table.substr(0, size)).IsCorruption()) << size;
  }
}

// Two sound parts that do not belong together, as a file system may leave them.
TEST(TableTailTest, AFooterOfAnotherTableIsDamaged) {
  const std::vector<std::string> tables = Tables();
  const auto [least, most] = std::minmax_element(tables.begin(), tables.end(),
                                                 [](const auto& a, const auto& b) { return a.size() < b.size(); });
  ASSERT_LT(least->size(), most->size());
  for (const auto& [from, to] : {std::pair(*least, *most), std::pair(*most, *least)}) {
    std::string mixed = to;
    mixed.replace(mixed.size() - kFooterBytes, kFooterBytes, from, from.size() - kFooterBytes, kFooterBytes);
    EXPECT_TRUE(Check(mixed).IsCorruption());
  }
}

TEST(TableTailTest, NamesSettingsThatAreNotOurs) {
  std::string table = Tables().front();
  table[table.size() - kFooterBytes] = 1;
  EXPECT_THAT(Check(table).ToString(), HasSubstr("kind 4 (XXH3); it has version 5 and kind 1"));
}

}  // namespace
}  // namespace mneme
