// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "tests/storage/testing.h"

namespace mneme {
namespace {

// The shape of the figures: 30 layers, 3 KV heads, 64 dims, f16.
constexpr int32_t kLayers = 30;
constexpr int32_t kHeads = 3;
constexpr size_t kRowBytes = 128;
constexpr uint64_t kTokenBytes = uint64_t{kLayers} * kHeads * 2 * kRowBytes;

MemoryManifest Manifest(const std::string& name) {
  MemoryManifest manifest = MakeManifest(name);
  manifest.card = MakeCard(kLayers, kHeads, 64);
  return manifest;
}

// RocksDB deletes files shortly after a compaction; waits until du is below `bytes` or time is up.
uint64_t DiskUsageBelow(const std::string& path, uint64_t bytes) {
  uint64_t usage = DiskUsage(path);
  for (int i = 0; i < 100 && usage > bytes; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    usage = DiskUsage(path);
  }
  return usage;
}

void PutChunks(Transaction& transaction, SegmentId segment, int64_t first_chunk, int64_t chunks) {
  const std::string rows = RowBytesOf(segment, kTestKeys, first_chunk, kChunkRows, kRowBytes);
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t head = 0; head < kHeads; ++head) {
      for (const ColumnKind kind : {ColumnKind::kKeys, ColumnKind::kValues}) {
        for (int64_t chunk = first_chunk; chunk < first_chunk + chunks; ++chunk) {
          ASSERT_OK(transaction.PutChunk(segment, {layer, head, kind}, chunk, rows, kRowBytes));
        }
      }
    }
  }
}

TEST(FootprintTest, AnAlmostEmptyStoreIsSmall) {
  const TempFolder folder;
  {
    const auto database = OpenOrDie(folder.store());
    CommitChunked(*database, "m", 4);
    const uint64_t open_bytes = DiskUsage(folder.store());
    std::printf("almost empty store: %llu bytes while open\n", static_cast<unsigned long long>(open_bytes));
    EXPECT_LT(open_bytes, 5u << 20);
    EXPECT_LE(database->Stats()->disk_bytes, open_bytes);
  }
  std::printf("almost empty store: %llu bytes closed\n", static_cast<unsigned long long>(DiskUsage(folder.store())));
  for (int i = 0; i < 10; ++i) OpenOrDie(folder.store());
  EXPECT_LT(DiskUsage(folder.store()), 5u << 20);
}

TEST(FootprintTest, BulkCommitsAreWrittenAboutOnce) {
  const TempFolder folder;
  auto database = OpenOrDie(folder.store());
  MemoryManifest manifest = Manifest("m");
  constexpr int64_t kCommits = 16;
  constexpr int64_t kTokensPerCommit = 512;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < kCommits; ++i) {
    if (i % 8 == 0) manifest.segments.push_back({database->NewSegmentId(), i * kTokensPerCommit, 0, 0, false});
    SegmentRef& segment = manifest.segments.back();
    auto transaction = database->Begin();
    PutChunks(*transaction, segment.id, segment.rows / kChunkRows, kTokensPerCommit / kChunkRows);
    segment.rows += kTokensPerCommit;
    segment.chunked_rows = segment.rows;
    ASSERT_OK(transaction->PutManifest(manifest));
    ASSERT_OK(transaction->Commit(Durability::kSynced));
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto stats = database->Stats();
  const uint64_t payload = kCommits * kTokensPerCommit * kTokenBytes;
  EXPECT_EQ(stats->appended_bytes, payload);
  EXPECT_GE(stats->written_bytes, payload);
  const double amplification = static_cast<double>(stats->written_bytes) / static_cast<double>(payload);
  std::printf("512 tokens a commit: write amplification %.3f, %.0f MB/s, du / payload %.3f\n", amplification,
              static_cast<double>(payload) / 1e6 / seconds,
              static_cast<double>(DiskUsage(folder.store())) / static_cast<double>(payload));
  EXPECT_LT(amplification, 3.0);
  const uint64_t limit = payload + payload / 20 + (16u << 20);
  EXPECT_LE(DiskUsageBelow(folder.store(), limit), limit);
  database.reset();
}

// Values of different segments go to different files; two memories that are committed at once must not flush in turns
// of a few hundred KiB.
TEST(FootprintTest, BulkCommitsAtOnceMakeFewFiles) {
  const TempFolder folder;
  const auto database = OpenOrDie(folder.store());
  constexpr int64_t kChunks = 160;
  constexpr size_t kWide = 512;  // a chunk has 128 KiB
  const SegmentId segments[] = {database->NewSegmentId(), database->NewSegmentId()};
  const std::string rows = RowBytesOf(segments[0], kTestKeys, 0, kChunkRows, kWide);
  const std::unique_ptr<Transaction> transactions[] = {database->Begin(), database->Begin()};
  for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
    for (const size_t i : {0, 1}) ASSERT_OK(transactions[i]->PutChunk(segments[i], kTestKeys, chunk, rows, kWide));
  }
  for (const size_t i : {0, 1}) {
    const MemoryManifest manifest =
        MakeManifest(absl::StrCat("m", i), {{segments[i], 0, kChunks * kChunkRows, kChunks * kChunkRows, true}});
    ASSERT_OK(transactions[i]->PutManifest(manifest));
    ASSERT_OK(transactions[i]->Commit(Durability::kBuffered));
  }
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.store())) {
    files += entry.path().extension() == ".blob" ? 1 : 0;
  }
  std::printf("two bulk commits of 20 MiB in turns: %d blob files\n", files);
  EXPECT_LE(files, 12);
  for (const SegmentId segment : segments) {
    EXPECT_TRUE(*ReadRows(*database, segment, kTestKeys, (kChunks - 1) * kChunkRows, kChunks * kChunkRows, kWide) ==
                rows);
  }
}

TEST(FootprintTest, SingleTokensAreWrittenFewTimes) {
  const TempFolder folder;
  const auto database = OpenOrDie(folder.store());
  MemoryManifest manifest = Manifest("m");
  manifest.segments.push_back({database->NewSegmentId(), 0, 0, 0, false});
  SegmentRef& segment = manifest.segments.back();
  constexpr int64_t kTokens = 2048;
  const std::string layer_rows = RowBytesOf(segment.id, kTestKeys, 0, kHeads * 2, kRowBytes);
  const auto start = std::chrono::steady_clock::now();
  for (int64_t token = 0; token < kTokens; ++token) {
    auto transaction = database->Begin();
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_OK(transaction->PutLog(segment.id, layer, token, 1, layer_rows));
    }
    segment.rows = token + 1;
    if (segment.rows % kChunkRows == 0) {
      PutChunks(*transaction, segment.id, token / kChunkRows, 1);
      ASSERT_OK(transaction->DeleteLogs(segment.id, segment.rows));
      segment.chunked_rows = segment.rows;
    }
    ASSERT_OK(transaction->PutManifest(manifest));
    ASSERT_OK(transaction->Commit(Durability::kBuffered));
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto stats = database->Stats();
  const uint64_t payload = kTokens * kTokenBytes;  // the same rows are logged, then chunked
  EXPECT_EQ(stats->appended_bytes, 2 * payload);
  const double amplification = static_cast<double>(stats->written_bytes) / static_cast<double>(payload);
  std::printf(
      "one token a commit: write amplification %.3f of the rows (%.3f of what transactions were given), %.0f "
      "commits/s\n",
      amplification, amplification / 2, kTokens / seconds);
  EXPECT_LT(amplification, 3.0);
  // The write-ahead log's 16 MiB (MakeDbOptions), and some tables of dead records that wait to be compacted.
  const uint64_t limit = payload + payload / 20 + (28u << 20);
  EXPECT_LE(DiskUsageBelow(folder.store(), limit), limit);
}

TEST(FootprintTest, DroppedSegmentsGiveTheirDiskBack) {
  const TempFolder folder;
  const auto database = OpenOrDie(folder.store());
  // Two memories that grow in turn, so that their segments lie beside each other in time.
  MemoryManifest manifests[2] = {Manifest("even"), Manifest("odd")};
  constexpr int kSegments = 4;
  constexpr int64_t kChunks = 2;
  const uint64_t segment_bytes = kChunks * kChunkRows * kTokenBytes;  // 11.8 MB
  for (int i = 0; i < kSegments; ++i) {
    for (MemoryManifest& manifest : manifests) {
      manifest.segments.push_back({database->NewSegmentId(), 0, kChunks * kChunkRows, kChunks * kChunkRows, true});
    }
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
      for (MemoryManifest& manifest : manifests) {
        auto transaction = database->Begin();
        PutChunks(*transaction, manifest.segments.back().id, chunk, 1);
        ASSERT_OK(transaction->PutManifest(manifest));
        ASSERT_OK(transaction->Commit(Durability::kBuffered));
      }
    }
  }
  const uint64_t before = DiskUsage(folder.store());
  EXPECT_GE(before, 2 * kSegments * segment_bytes);

  std::vector<SegmentId> dropped;
  for (const SegmentRef& segment : manifests[0].segments) dropped.push_back(segment.id);
  auto transaction = database->Begin();
  ASSERT_OK(transaction->DeleteManifest("even"));
  ASSERT_OK(transaction->Commit(Durability::kBuffered));
  const uint64_t written = database->Stats()->written_bytes;
  const auto start = std::chrono::steady_clock::now();
  ASSERT_OK(database->DropSegments(dropped));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const uint64_t expected = before - kSegments * segment_bytes;
  const uint64_t after = DiskUsageBelow(folder.store(), expected + (1u << 20));
  std::printf("drop: %.1f MB before, %.1f MB after, payload dropped %.1f MB; %.0f ms, wrote %.3f MB\n",
              static_cast<double>(before) / 1e6, static_cast<double>(after) / 1e6,
              static_cast<double>(kSegments * segment_bytes) / 1e6, seconds * 1e3,
              static_cast<double>(database->Stats()->written_bytes - written) / 1e6);
  EXPECT_LT(after, expected + (1u << 20));
  // Cheap: the neighbours' rows were not moved.
  EXPECT_LT(database->Stats()->written_bytes - written, 1u << 20);
  for (const SegmentRef& segment : manifests[1].segments) {
    EXPECT_EQ(*ReadRows(*database, segment.id, {29, 2, ColumnKind::kValues}, 256, 512),
              RowBytesOf(segment.id, kTestKeys, 1, kChunkRows, kRowBytes));
  }
}

TEST(FootprintTest, ManySmallDropsCostLittle) {
  const TempFolder folder;
  const auto database = OpenOrDie(folder.store());
  constexpr int kMemories = 100;
  std::vector<SegmentId> segments;
  for (int i = 0; i < kMemories; ++i) segments.push_back(CommitChunked(*database, absl::StrCat("m", i), 512));
  const uint64_t before = DiskUsage(folder.store());
  const uint64_t written = database->Stats()->written_bytes;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kMemories; i += 2) {
    auto transaction = database->Begin();
    ASSERT_OK(transaction->DeleteManifest(absl::StrCat("m", i)));
    ASSERT_OK(transaction->Commit(Durability::kBuffered));
    ASSERT_OK(database->DropSegments({segments[static_cast<size_t>(i)]}));
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const uint64_t payload = kMemories / 2 * 512 * 2 * kTestRowBytes;
  const uint64_t after = DiskUsageBelow(folder.store(), before - payload / 2);
  std::printf("%d small drops: %.1f ms each, wrote %.3f MB, freed %.1f of %.1f MB\n", kMemories / 2,
              seconds * 1e3 / (kMemories / 2), static_cast<double>(database->Stats()->written_bytes - written) / 1e6,
              (static_cast<double>(before) - static_cast<double>(after)) / 1e6, static_cast<double>(payload) / 1e6);
  EXPECT_LT(after, before - payload * 8 / 10);
}

TEST(FootprintTest, IndexBlobsAreWrittenAboutOnceAndGiveTheirDiskBack) {
  const TempFolder folder;
  const auto database = OpenOrDie(folder.store());
  const std::string blob = RowBytesOf(1, kTestKeys, 0, 1, 1 << 20);
  std::vector<IndexId> indexes;
  for (int i = 0; i < 3; ++i) {
    indexes.push_back(database->NewIndexId());
    for (int32_t head = 0; head < 20; ++head) ASSERT_OK(database->PutIndexBlob(indexes.back(), 0, head, blob));
  }
  MemoryManifest manifest = Manifest("m");
  manifest.indexes = {{indexes[1], 0, 1, "hnsw"}};
  auto transaction = database->Begin();
  ASSERT_OK(transaction->PutManifest(manifest));
  ASSERT_OK(transaction->Commit(Durability::kBuffered));
  EXPECT_LT(database->Stats()->written_bytes, 66u << 20);
  ASSERT_OK(database->DropIndexes({indexes[0], indexes[2]}));
  EXPECT_LT(DiskUsageBelow(folder.store(), 21u << 20), 21u << 20);
  EXPECT_TRUE(*database->GetIndexBlob(indexes[1], 0, 7) == blob);
}

}  // namespace
}  // namespace mneme
