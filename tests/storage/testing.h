// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_STORAGE_TESTING_H_
#define MNEME_TESTS_STORAGE_TESTING_H_

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/temporary_folder.h"
#include "storage/database.h"

namespace mneme {

#define EXPECT_OK(expression)                        \
  do {                                               \
    const absl::Status status_ = (expression);       \
    EXPECT_TRUE(status_.ok()) << status_.ToString(); \
  } while (false)
#define ASSERT_OK(expression)                        \
  do {                                               \
    const absl::Status status_ = (expression);       \
    ASSERT_TRUE(status_.ok()) << status_.ToString(); \
  } while (false)

// A folder of its own for one test. A test that is killed leaves it to the next one, which removes it.
class TempFolder {
 public:
  explicit TempFolder(const std::string& root = ::testing::TempDir()) : folder_(root) {}

  std::string store() const { return path() + "/store"; }
  const std::string& path() const { return folder_.path(); }

 private:
  const TemporaryFolder folder_;
};

// What du says.
inline uint64_t DiskUsage(const std::string& path) {
  uint64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    struct stat info;
    if (lstat(it->path().c_str(), &info) == 0) bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return bytes;
}

inline std::unique_ptr<Database> OpenOrDie(const std::string& path,
                                           DatabaseOptions::Mode mode = DatabaseOptions::Mode::kReadWrite) {
  DatabaseOptions options;
  options.mode = mode;
  absl::StatusOr<std::unique_ptr<Database>> database = Database::Open(path, options);
  if (!database.ok()) {
    ADD_FAILURE() << database.status();
    std::abort();
  }
  return *std::move(database);
}

// Bytes that tell where they belong.
inline std::string RowBytesOf(SegmentId segment, const Column& column, int64_t first_row, int64_t rows,
                              size_t row_bytes) {
  std::string bytes(static_cast<size_t>(rows) * row_bytes, '\0');
  for (int64_t row = 0; row < rows; ++row) {
    uint64_t state = segment * 1000003 + static_cast<uint64_t>(column.layer) * 8191 +
                     static_cast<uint64_t>(column.head) * 131 + static_cast<uint64_t>(column.kind) * 17 +
                     static_cast<uint64_t>(first_row + row) * 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < row_bytes; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      bytes[static_cast<size_t>(row) * row_bytes + i] = static_cast<char>(state >> 56);
    }
  }
  return bytes;
}

// A card of equal layers 0 … layers - 1.
inline ModelCard MakeCard(int32_t layers, int32_t heads, int32_t dim) {
  ModelCard card;
  card.model_name = "test";
  card.weights_fingerprint = "sha256:0";
  for (int32_t i = 0; i < layers; ++i) {
    LayerCard layer;
    layer.layer = i;
    layer.query_heads = 3 * heads;
    layer.kv_heads = heads;
    layer.key_dim = dim;
    layer.value_dim = dim;
    layer.scale = 0.125f;
    layer.rotary.layout = RotaryLayout::kHalves;
    layer.rotary.inverse_frequencies.assign(dim / 2, 0.5f);
    card.layers.push_back(layer);
  }
  return card;
}

inline MemoryManifest MakeManifest(const std::string& name, const std::vector<SegmentRef>& segments = {}) {
  MemoryManifest manifest;
  manifest.name = name;
  manifest.card = MakeCard(1, 1, 64);
  manifest.segments = segments;
  return manifest;
}

// One row of MakeCard(1, 1, 64) in f16.
inline constexpr size_t kTestRowBytes = 128;
inline constexpr Column kTestKeys{0, 0, ColumnKind::kKeys};
inline constexpr Column kTestValues{0, 0, ColumnKind::kValues};

// Commits `rows` chunked rows of keys and values in a new segment as the whole memory `name`.
inline SegmentId CommitChunked(Database& database, const std::string& name, int64_t rows) {
  const SegmentId segment = database.NewSegmentId();
  std::unique_ptr<Transaction> transaction = database.Begin();
  for (const Column& column : {kTestKeys, kTestValues}) {
    for (int64_t row = 0; row < rows; row += kChunkRows) {
      const int64_t n = std::min(kChunkRows, rows - row);
      EXPECT_OK(transaction->PutChunk(segment, column, row / kChunkRows,
                                      RowBytesOf(segment, column, row, n, kTestRowBytes), kTestRowBytes));
    }
  }
  EXPECT_OK(transaction->PutManifest(MakeManifest(name, {{segment, 0, rows, rows, true}})));
  EXPECT_OK(transaction->Commit(Durability::kSynced));
  return segment;
}

inline absl::StatusOr<std::string> ReadRows(Database& database, SegmentId segment, const Column& column, int64_t begin,
                                            int64_t end, size_t row_bytes = kTestRowBytes) {
  std::string rows(static_cast<size_t>(end - begin) * row_bytes, '\0');
  const absl::Status status =
      database.ReadChunkRows(segment, column, begin, end, row_bytes, absl::MakeSpan(rows.data(), rows.size()));
  if (!status.ok()) return status;
  return rows;
}

}  // namespace mneme

#endif  // MNEME_TESTS_STORAGE_TESTING_H_
