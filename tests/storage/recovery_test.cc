// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
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
  int64_t durable = 0;  // tokens that the child acknowledged or that a reopened store held
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
    while (read(pipe_fds[0], &tokens, sizeof(tokens)) == sizeof(tokens)) {
      if (tokens != durable + 1) break;
      durable = tokens;
    }
    killer.join();
    close(pipe_fds[0]);
    ASSERT_TRUE(tokens == 0 || tokens == durable) << "after " << durable << " tokens came " << tokens;
    int how = 0;
    waitpid(child, &how, 0);
    ASSERT_TRUE(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL) << "the child ended by itself: " << how;

    const auto database = OpenOrDie(folder.store());
    const MemoryManifest manifest = CrashManifest(*database);
    ASSERT_GE(Tokens(manifest), durable) << "an acknowledged commit is lost";
    // The kill may hit between a commit and its acknowledgement. What the reopened store holds is durable from here on.
    ASSERT_LE(Tokens(manifest), durable + 1) << "a token that was never committed";
    durable = Tokens(manifest);
    ASSERT_NO_FATAL_FAILURE(ExpectWhole(*database, manifest));
    orphans += database->Stats()->orphans_collected;
  }
  std::printf("%d kills, %lld tokens committed, %llu orphans collected, 0 lost\n", kills,
              static_cast<long long>(durable), static_cast<unsigned long long>(orphans));
}

TEST(RecoveryTest, DISABLED_ChildThatHoldsTheStore) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // the child ends with the test that started it
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

// Runs a test once more in a process of its own, which finds the folder of a small disk in MNEME_TEST_DISK. The disk is
// mounted in that process's own mount namespace, so that nothing is left however it ends; only root can do that.
constexpr int kSkip = 77;

void RunOnSmallDisk(void (*test)(const std::string& disk)) {
  if (const char* const disk = std::getenv("MNEME_TEST_DISK")) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("tmpfs", disk, "tmpfs", 0, "size=24m") != 0) {
      _exit(kSkip);
    }
    return test(disk);
  }
  const TempFolder folder;
  const auto* const info = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string filter = absl::StrCat("--gtest_filter=", info->test_suite_name(), ".", info->name());
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    setenv("MNEME_TEST_DISK", folder.path().c_str(), 1);
    execl("/proc/self/exe", "storage_tests", filter.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kSkip) GTEST_SKIP() << "cannot mount a tmpfs";
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
}

absl::Status CommitOneChunk(Database& database, const std::string& name, SegmentId& segment) {
  const auto transaction = database.Begin();
  segment = database.NewSegmentId();
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

SegmentId CommitWithRoom(Database& database, const std::string& name) {
  SegmentId segment = 0;
  EXPECT_OK(CommitOneChunk(database, name, segment));
  return segment;
}

void FillWithRows(const std::string& disk) {
  for (const bool chunks : {true, false}) {
    SCOPED_TRACE(chunks ? "full when chunks are flushed" : "full when the commit is logged");
    const TempFolder folder(disk);
    const std::string store = folder.store();
    auto database = OpenOrDie(store);
    const SegmentId first = CommitChunked(*database, "first", 300);
    const std::string ballast = Ballast(disk);

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
    const SegmentId trial = CommitWithRoom(*database, "trial");
    const SegmentId third = CommitWithRoom(*database, "third");
    for (int reopened = 0; reopened < 2; ++reopened) {
      EXPECT_THAT(*database->ListMemories(), ElementsAre("first", "third", "trial"));
      for (const SegmentId segment : {trial, third}) {
        EXPECT_EQ(*ReadRows(*database, segment, kTestKeys, 0, kChunkRows),
                  RowBytesOf(segment, kTestKeys, 0, kChunkRows, kTestRowBytes));
      }
      EXPECT_EQ(*ReadRows(*database, first, kTestKeys, 0, 300), RowBytesOf(first, kTestKeys, 0, 300, kTestRowBytes));
      database.reset();
      database = OpenOrDie(store);
    }
  }
}

TEST(RecoveryTest, AFullDiskIsReportedAndTheStoreGoesOnWhenThereIsRoom) {
  RunOnSmallDisk(FillWithRows);
}

// Commits records until the disk is full.
void LogUntilFull(Database& database) {
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) {
    const auto transaction = database.Begin();
    status = transaction->PutLog(database.NewSegmentId(), 0, 0, 1, std::string(1 << 20, 'l'));
    if (status.ok()) status = transaction->Commit(Durability::kSynced);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
}

// Chunks have no log: what a transaction wrote before the database was opened again may be lost, and must not be
// committed. Other threads read meanwhile, as always.
void CutATransaction(const std::string& disk) {
  const std::string store = disk + "/store";
  auto database = OpenOrDie(store);
  const SegmentId first = CommitChunked(*database, "first", 300);
  const SegmentId halves[] = {database->NewSegmentId(), database->NewSegmentId()};
  const auto put_half = [&](Transaction& transaction, SegmentId segment) {
    return transaction.PutChunk(segment, kTestKeys, 0, RowBytesOf(segment, kTestKeys, 0, kChunkRows, kTestRowBytes),
                                kTestRowBytes);
  };
  const MemoryManifest manifest = MakeManifest(
      "cut", {{halves[0], 0, kChunkRows, kChunkRows, true}, {halves[1], kChunkRows, kChunkRows, kChunkRows, true}});
  auto cut = database->Begin();
  // The second half's coming writes the first one to RocksDB, without a log and not yet to a file.
  for (const SegmentId half : halves) ASSERT_OK(put_half(*cut, half));

  const std::string ballast = Ballast(disk);
  LogUntilFull(*database);
  unlink(ballast.c_str());
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop) {
      EXPECT_EQ(*ReadRows(*database, first, kTestKeys, 0, 300), RowBytesOf(first, kTestKeys, 0, 300, kTestRowBytes));
    }
  });
  CommitWithRoom(*database, "second");
  ASSERT_OK(cut->PutManifest(manifest));
  const absl::Status status = cut->Commit(Durability::kBuffered);
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_THAT(*database->ListMemories(), ElementsAre("first", "second"));
  cut = database->Begin();
  for (const SegmentId half : halves) ASSERT_OK(put_half(*cut, half));
  ASSERT_OK(cut->PutManifest(manifest));
  ASSERT_OK(cut->Commit(Durability::kBuffered));
  stop = true;
  reader.join();
  // While the database was opened again nobody else could have become its writer, and nobody can now.
  EXPECT_TRUE(absl::IsFailedPrecondition(Database::Open(store, DatabaseOptions()).status()));
  database.reset();
  database = OpenOrDie(store);
  for (const SegmentId half : halves) {
    EXPECT_EQ(*ReadRows(*database, half, kTestKeys, 0, kChunkRows),
              RowBytesOf(half, kTestKeys, 0, kChunkRows, kTestRowBytes));
  }
}

TEST(RecoveryTest, ATransactionFromBeforeTheDatabaseWasOpenedAgainIsRefused) {
  RunOnSmallDisk(CutATransaction);
}

// A disk that is still full when the database is to be opened again: what is committed can be read all the same.
void FillTwice(const std::string& disk) {
  const std::string store = disk + "/store";
  auto database = OpenOrDie(store);
  const SegmentId first = CommitChunked(*database, "first", 300);
  const std::string ballast = Ballast(disk);
  LogUntilFull(*database);
  const auto names = *database->ListMemories();
  SegmentId segment = 0;
  absl::Status status;
  for (int i = 0; i < 3; ++i) {
    status = CommitOneChunk(*database, "no room", segment);
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_EQ(*database->ListMemories(), names);
    EXPECT_EQ(*ReadRows(*database, first, kTestKeys, 0, 300), RowBytesOf(first, kTestKeys, 0, 300, kTestRowBytes));
    status = Database::Open(store, DatabaseOptions()).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << "another writer may not come in between: " << status;
  }
  unlink(ballast.c_str());
  ASSERT_OK(CommitOneChunk(*database, "room", segment));
  database.reset();
  database = OpenOrDie(store);
  EXPECT_THAT(*database->ListMemories(), ::testing::Contains("room"));
  EXPECT_EQ(*ReadRows(*database, segment, kTestKeys, 0, kChunkRows),
            RowBytesOf(segment, kTestKeys, 0, kChunkRows, kTestRowBytes));
}

TEST(RecoveryTest, ADiskThatStaysFullLeavesTheStoreReadable) {
  RunOnSmallDisk(FillTwice);
}

// Two flushes run at once. RocksDB deletes the files of one that was done when the other, of older rows, fails, and
// misses them whenever it is told to resume.
void FailOneOfTwoFlushes(const std::string& disk) {
  const std::string store = disk + "/store";
  auto database = OpenOrDie(store);
  const SegmentId first = CommitChunked(*database, "first", 300);
  constexpr size_t kWide = 4096;
  for (const int kib : {800, 1600, 2400, 3200, 4000, 4800}) {
    SCOPED_TRACE(absl::StrCat(kib, " KiB are left"));
    const std::string ballast = Ballast(disk);
    struct stat info;
    ASSERT_EQ(stat(ballast.c_str(), &info), 0);
    ASSERT_EQ(truncate(ballast.c_str(), info.st_size - kib * 1024), 0);
    const std::string name = absl::StrCat("of ", kib);
    SegmentId segment = 0;
    const auto commit = [&]() -> absl::Status {
      const auto transaction = database->Begin();
      segment = database->NewSegmentId();
      // Five chunks begin a flush; the sixth is in one of its own, and small.
      for (int64_t chunk = 0; chunk < 6; ++chunk) {
        const int64_t rows = chunk < 5 ? kChunkRows : 16;
        const absl::Status status = transaction->PutChunk(
            segment, kTestKeys, chunk, RowBytesOf(segment, kTestKeys, chunk * kChunkRows, rows, kWide), kWide);
        if (!status.ok()) return status;
      }
      const int64_t all = 5 * kChunkRows + 16;
      const absl::Status status = transaction->PutManifest(MakeManifest(name, {{segment, 0, all, all, true}}));
      return status.ok() ? transaction->Commit(Durability::kSynced) : status;
    };
    absl::Status status = commit();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    unlink(ballast.c_str());
    ASSERT_OK(commit());
    for (int reopened = 0; reopened < 2; ++reopened) {
      EXPECT_THAT(*database->ListMemories(), ElementsAre("first", name));
      EXPECT_TRUE(*ReadRows(*database, segment, kTestKeys, 0, 5 * kChunkRows + 16, kWide) ==
                  RowBytesOf(segment, kTestKeys, 0, 5 * kChunkRows + 16, kWide));
      EXPECT_EQ(*ReadRows(*database, first, kTestKeys, 0, 300), RowBytesOf(first, kTestKeys, 0, 300, kTestRowBytes));
      database.reset();
      database = OpenOrDie(store);
    }
    const auto transaction = database->Begin();
    ASSERT_OK(transaction->DeleteManifest(name));
    ASSERT_OK(transaction->Commit(Durability::kSynced));
    database.reset();
    database = OpenOrDie(store);
  }
}

TEST(RecoveryTest, AFlushThatFailsBesideAnotherCostsNothing) {
  RunOnSmallDisk(FailOneOfTwoFlushes);
}

void OpenOnAFullDisk(const std::string& disk) {
  const std::string ballast = Ballast(disk);
  const absl::Status status = Database::Open(disk + "/store", DatabaseOptions()).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  unlink(ballast.c_str());
  OpenOrDie(disk + "/store");
}

TEST(RecoveryTest, AFullDiskAtOpenIsReported) {
  RunOnSmallDisk(OpenOnAFullDisk);
}

}  // namespace
}  // namespace mneme
