#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include "tests/storage/testing.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(RecoveryTest, WhatNoManifestNamesIsCollectedAtOpen) {
  const TempFolder folder;
  SegmentId kept = 0;
  SegmentId unnamed = 0;
  {
    const auto database = OpenOrDie(folder.store());
    kept = CommitChunked(*database, "kept", 300);
    // A transaction that never commits, with enough rows to reach the disk.
    unnamed = database->NewSegmentId();
    auto transaction = database->Begin();
    const std::string rows = RowBytesOf(unnamed, kTestKeys, 0, kChunkRows, 4096);
    for (int64_t chunk = 0; chunk < 40; ++chunk) {
      ASSERT_OK(transaction->PutChunk(unnamed, kTestKeys, chunk, rows, 4096));
    }
    ASSERT_OK(transaction->PutManifest(MakeManifest("never", {{unnamed, 0, 1, 1, true}})));
    transaction.reset();
    EXPECT_THAT(*database->ListMemories(), ElementsAre("kept"));
    // Two that a deleted memory leaves, and an index.
    CommitChunked(*database, "gone", 300);
    transaction = database->Begin();
    ASSERT_OK(transaction->PutLog(database->NewSegmentId(), 0, 0, 1, std::string("log of nobody")));
    ASSERT_OK(transaction->DeleteManifest("gone"));
    ASSERT_OK(transaction->Commit(Durability::kSynced));
    ASSERT_OK(database->PutIndexBlob(database->NewIndexId(), 0, 0, "index of nobody"));
  }
  EXPECT_GT(DiskUsage(folder.store()), 10u << 20);
  const auto database = OpenOrDie(folder.store());
  EXPECT_EQ(database->Stats()->orphans_collected, 4u);
  EXPECT_TRUE(absl::IsDataLoss(ReadRows(*database, unnamed, kTestKeys, 0, 1, 4096).status()));
  EXPECT_EQ(*ReadRows(*database, kept, kTestKeys, 0, 300), RowBytesOf(kept, kTestKeys, 0, 300, kTestRowBytes));
  EXPECT_LT(DiskUsage(folder.store()), 2u << 20);
  EXPECT_GT(database->NewSegmentId(), unnamed);
}

// The memory that the killed process grows: tokens one by one in the log, chunks every 256, a segment every 1024, at
// most three segments. Every commit appends one token; row r of a segment is RowBytesOf.
constexpr int64_t kSegmentRows = 1024;
constexpr Column kCrashColumns[] = {
    {0, 0, ColumnKind::kKeys}, {0, 0, ColumnKind::kValues}, {1, 0, ColumnKind::kKeys}, {1, 0, ColumnKind::kValues}};

std::string LogBytes(SegmentId segment, int32_t layer, int64_t row, int64_t rows) {
  return RowBytesOf(segment, {layer, 0, ColumnKind::kKeys}, row, rows, kTestRowBytes) +
         RowBytesOf(segment, {layer, 0, ColumnKind::kValues}, row, rows, kTestRowBytes);
}

int64_t Tokens(const MemoryManifest& manifest) {
  return manifest.segments.empty() ? 0 : manifest.segments.back().first_token + manifest.segments.back().rows;
}

// Commits one token more; returns the tokens then.
absl::StatusOr<int64_t> Grow(Database& database, MemoryManifest& manifest, Durability durability) {
  std::vector<SegmentId> dropped;
  std::unique_ptr<Transaction> transaction = database.Begin();
  if (manifest.segments.empty() || manifest.segments.back().rows == kSegmentRows) {
    manifest.segments.push_back({database.NewSegmentId(), Tokens(manifest), 0, 0, false});
    if (manifest.segments.size() > 3) {
      dropped.push_back(manifest.segments.front().id);
      manifest.segments.erase(manifest.segments.begin());
    }
  }
  SegmentRef& segment = manifest.segments.back();
  const int64_t row = segment.rows++;
  if (segment.rows % kChunkRows == 0) {
    for (const Column& column : kCrashColumns) {
      const absl::Status status = transaction->PutChunk(
          segment.id, column, row / kChunkRows,
          RowBytesOf(segment.id, column, segment.rows - kChunkRows, kChunkRows, kTestRowBytes), kTestRowBytes);
      if (!status.ok()) return status;
    }
    segment.chunked_rows = segment.rows;
    if (absl::Status status = transaction->DeleteLogs(segment.id, segment.rows); !status.ok()) return status;
  } else {
    for (const int32_t layer : {0, 1}) {
      absl::Status status = transaction->PutLog(segment.id, layer, row, 1, LogBytes(segment.id, layer, row, 1));
      if (!status.ok()) return status;
    }
  }
  ++manifest.generation;
  if (absl::Status status = transaction->PutManifest(manifest); !status.ok()) return status;
  if (absl::Status status = transaction->Commit(durability); !status.ok()) return status;
  if (absl::Status status = database.DropSegments(dropped); !status.ok()) return status;
  return Tokens(manifest);
}

MemoryManifest CrashManifest(Database& database) {
  auto found = database.ReadManifest("crash");
  if (found.ok()) return *found;
  MemoryManifest manifest = MakeManifest("crash");
  manifest.card = MakeCard(2, 1, 64);
  return manifest;
}

void ExpectWhole(Database& database, const MemoryManifest& manifest) {
  for (const SegmentRef& segment : manifest.segments) {
    for (const Column& column : kCrashColumns) {
      const auto rows = ReadRows(database, segment.id, column, 0, segment.chunked_rows);
      ASSERT_TRUE(rows.ok()) << rows.status();
      ASSERT_TRUE(*rows == RowBytesOf(segment.id, column, 0, segment.chunked_rows, kTestRowBytes));
    }
    for (const int32_t layer : {0, 1}) {
      const auto records = database.ReadLogs(segment.id, layer);
      ASSERT_TRUE(records.ok()) << records.status();
      ASSERT_EQ(static_cast<int64_t>(records->size()), segment.rows - segment.chunked_rows);
      int64_t row = segment.chunked_rows;
      for (const LogRecord& record : *records) {
        ASSERT_EQ(record.first_row, row);
        ASSERT_EQ(record.bytes, LogBytes(segment.id, layer, row, 1));
        ++row;
      }
    }
  }
  EXPECT_OK(database.VerifyMemory(manifest, nullptr, [](const absl::Status& status) { ADD_FAILURE() << status; }));
}

// Starts this program again to run `test` alone: a fork without exec would inherit RocksDB's thread pool without its
// threads.
pid_t Spawn(const char* test, const std::string& store, int ack_fd, const std::string& argument) {
  const std::string filter = absl::StrCat("--gtest_filter=", test);
  const std::string fd = absl::StrCat(ack_fd);
  const pid_t child = fork();
  if (child != 0) return child;
  setenv("MNEME_TEST_STORE", store.c_str(), 1);
  setenv("MNEME_TEST_FD", fd.c_str(), 1);
  setenv("MNEME_TEST_ARGUMENT", argument.c_str(), 1);
  const int null = open("/dev/null", O_WRONLY);
  dup2(null, STDOUT_FILENO);
  execl("/proc/self/exe", "storage_tests", filter.c_str(), "--gtest_also_run_disabled_tests",
        static_cast<char*>(nullptr));
  _exit(127);
}

TEST(RecoveryTest, DISABLED_ChildThatIsKilled) {
  const char* store = std::getenv("MNEME_TEST_STORE");
  const int fd = std::atoi(std::getenv("MNEME_TEST_FD"));
  const uint64_t seed = std::strtoull(std::getenv("MNEME_TEST_ARGUMENT"), nullptr, 10);
  std::mt19937_64 random(seed);
  const auto database = OpenOrDie(store);
  MemoryManifest manifest = CrashManifest(*database);
  for (;;) {
    const auto tokens = Grow(*database, manifest, random() % 8 == 0 ? Durability::kSynced : Durability::kBuffered);
    if (!tokens.ok()) {
      std::fprintf(stderr, "%s\n", tokens.status().ToString().c_str());
      _exit(1);
    }
    if (write(fd, &*tokens, sizeof(*tokens)) != sizeof(*tokens)) _exit(2);
  }
}

TEST(RecoveryTest, NoAcknowledgedCommitIsLostToAKill) {
  const TempFolder folder;
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  const char* wanted = std::getenv("MNEME_KILLS");
  const int kills = wanted != nullptr ? std::atoi(wanted) : 25;
  int64_t acknowledged = 0;
  uint64_t orphans = 0;
  for (int kill_number = 0; kill_number < kills; ++kill_number) {
    int pipe_fds[2];
    ASSERT_EQ(pipe(pipe_fds), 0);
    const pid_t child =
        Spawn("RecoveryTest.DISABLED_ChildThatIsKilled", folder.store(), pipe_fds[1], absl::StrCat(random()));
    ASSERT_GT(child, 0);
    close(pipe_fds[1]);
    // Some die while they open, most while they commit.
    std::thread killer([child, delay = random() % 3 == 0 ? random() % 40 : 20 + random() % 400] {
      std::this_thread::sleep_for(std::chrono::milliseconds(delay));
      kill(child, SIGKILL);
    });
    int64_t tokens = 0;
    while (read(pipe_fds[0], &tokens, sizeof(tokens)) == sizeof(tokens)) acknowledged = tokens;
    killer.join();
    close(pipe_fds[0]);
    int how = 0;
    waitpid(child, &how, 0);
    ASSERT_TRUE(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL) << "the child ended by itself: " << how;

    const auto database = OpenOrDie(folder.store());
    const MemoryManifest manifest = CrashManifest(*database);
    ASSERT_GE(Tokens(manifest), acknowledged);
    ASSERT_LE(Tokens(manifest), acknowledged + 1);
    ASSERT_NO_FATAL_FAILURE(ExpectWhole(*database, manifest));
    orphans += database->Stats()->orphans_collected;
  }
  std::printf("%d kills, %lld tokens committed, %llu orphans collected, 0 lost\n", kills,
              static_cast<long long>(acknowledged), static_cast<unsigned long long>(orphans));
}

TEST(RecoveryTest, DISABLED_ChildThatHoldsTheStore) {
  const auto database = OpenOrDie(std::getenv("MNEME_TEST_STORE"));
  const int fd = std::atoi(std::getenv("MNEME_TEST_FD"));
  if (write(fd, "x", 1) != 1) _exit(2);
  for (;;) pause();
}

TEST(RecoveryTest, AWriterInAnotherProcessIsRefused) {
  const TempFolder folder;
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  const pid_t child = Spawn("RecoveryTest.DISABLED_ChildThatHoldsTheStore", folder.store(), pipe_fds[1], "");
  close(pipe_fds[1]);
  char byte = 0;
  ASSERT_EQ(read(pipe_fds[0], &byte, 1), 1);
  close(pipe_fds[0]);
  const absl::Status status = Database::Open(folder.store(), DatabaseOptions()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("store is open by another writer"));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  OpenOrDie(folder.store());
}

// A small file system of its own; only root can mount one.
class SmallDisk {
 public:
  SmallDisk() { mounted_ = mount("tmpfs", folder_.path().c_str(), "tmpfs", 0, "size=24m") == 0; }
  ~SmallDisk() {
    if (mounted_) umount2(folder_.path().c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  const TempFolder& folder() const { return folder_; }

 private:
  TempFolder folder_;
  bool mounted_ = false;
};

absl::Status CommitOneChunk(Database& database, const std::string& name) {
  const auto transaction = database.Begin();
  const SegmentId segment = database.NewSegmentId();
  const std::string rows = RowBytesOf(segment, kTestKeys, 0, kChunkRows, kTestRowBytes);
  absl::Status status = transaction->PutChunk(segment, kTestKeys, 0, rows, kTestRowBytes);
  if (status.ok()) status = transaction->PutManifest(MakeManifest(name, {{segment, 0, kChunkRows, kChunkRows, true}}));
  return status.ok() ? transaction->Commit(Durability::kSynced) : status;
}

std::string Ballast(const std::string& path) {
  const std::string file = path + "/ballast";
  const int fd = open(file.c_str(), O_CREAT | O_WRONLY, 0600);
  std::string block(1 << 16, 'b');
  while (!block.empty()) {
    if (write(fd, block.data(), block.size()) != static_cast<ssize_t>(block.size())) block.resize(block.size() / 2);
  }
  close(fd);
  return file;
}

// RocksDB does not always recover from a full disk while it is open: then a write says so, and nothing that was
// acknowledged is lost; at the latest a store that is opened again goes on.
TEST(RecoveryTest, AFullDiskIsReportedAndTheStoreGoesOnWhenThereIsRoom) {
  for (const bool chunks : {true, false}) {
    SCOPED_TRACE(chunks ? "full when chunks are flushed" : "full when the commit is logged");
    const SmallDisk disk;
    if (!disk.mounted()) GTEST_SKIP() << "cannot mount a tmpfs";
    const std::string store = disk.folder().store();
    auto database = OpenOrDie(store);
    const SegmentId first = CommitChunked(*database, "first", 300);
    const std::string ballast = Ballast(disk.folder().path());

    absl::Status status;
    for (int i = 0; i < 100 && status.ok(); ++i) {
      auto transaction = database->Begin();
      const SegmentId segment = database->NewSegmentId();
      const std::string rows = RowBytesOf(segment, kTestKeys, 0, kChunkRows, 4096);
      status = chunks ? transaction->PutChunk(segment, kTestKeys, 0, rows, 4096)
                      : transaction->PutLog(segment, 0, 0, kChunkRows, rows);
      if (status.ok()) {
        status = transaction->PutManifest(MakeManifest("second", {{segment, 0, kChunkRows, kChunkRows, true}}));
      }
      if (status.ok()) status = transaction->Commit(Durability::kSynced);
    }
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    // Nothing of it is seen, what was there can be read, and a further write fails like the first.
    EXPECT_THAT(*database->ListMemories(), ElementsAre("first"));
    EXPECT_EQ(*ReadRows(*database, first, kTestKeys, 0, 300), RowBytesOf(first, kTestKeys, 0, 300, kTestRowBytes));
    auto transaction = database->Begin();
    status = transaction->PutLog(first, 0, 300, 1, std::string(1 << 20, 'l'));
    if (status.ok()) status = transaction->Commit(Durability::kSynced);
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;

    unlink(ballast.c_str());
    status = CommitOneChunk(*database, "trial");
    if (!status.ok()) {
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      EXPECT_THAT(*database->ListMemories(), ElementsAre("first"));
      database.reset();
      database = OpenOrDie(store);
      ASSERT_TRUE(CommitOneChunk(*database, "trial").ok());
    }
    const SegmentId third = CommitChunked(*database, "third", 300);
    for (int reopened = 0; reopened < 2; ++reopened) {
      EXPECT_THAT(*database->ListMemories(), ElementsAre("first", "third", "trial"));
      EXPECT_EQ(*ReadRows(*database, third, kTestKeys, 0, 300), RowBytesOf(third, kTestKeys, 0, 300, kTestRowBytes));
      EXPECT_EQ(*ReadRows(*database, first, kTestKeys, 0, 300), RowBytesOf(first, kTestKeys, 0, 300, kTestRowBytes));
      database.reset();
      database = OpenOrDie(store);
    }
  }
}

TEST(RecoveryTest, AFullDiskAtOpenIsReported) {
  const SmallDisk disk;
  if (!disk.mounted()) GTEST_SKIP() << "cannot mount a tmpfs";
  const std::string ballast = Ballast(disk.folder().path());
  const absl::Status status = Database::Open(disk.folder().store(), DatabaseOptions()).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  unlink(ballast.c_str());
  OpenOrDie(disk.folder().store());
}

}  // namespace
}  // namespace mneme
