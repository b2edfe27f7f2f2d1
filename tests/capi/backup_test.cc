// SPDX-License-Identifier: Apache-2.0
// Backups: they hold what was committed, byte for byte, whatever the store does meanwhile and whenever the process is
// killed; a restore is all or nothing.

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "rocksdb/db.h"
#include "rocksdb/utilities/backup_engine.h"

#include "base/checksum.h"
#include "tests/capi/testing.h"
#include "tests/storage/tamper.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBatch = 300;  // tokens of one append and commit: some whole chunks, and a rest in the log
constexpr int kSkip = 77;

uint32_t SeedOf(int64_t batch, int32_t layer) {
  return static_cast<uint32_t>(10 * batch + layer);
}

// Appends batch number `batch`, and commits it.
mneme_status AppendBatch(mneme_memory* memory, int64_t batch, mneme_durability durability = MNEME_DURABILITY_BUFFERED) {
  for (const int32_t layer : {kLayer, kOtherLayer}) {
    if (const mneme_status status = AppendTokens(memory, layer, kBatch, SeedOf(batch, layer))) return status;
  }
  return mneme_memory_commit(memory, durability, nullptr);
}

mneme_memory* CreateMemory(mneme_store* store, const char* name) {
  mneme_card* const card = NewCard();
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.stored_dtype = MNEME_DTYPE_F32;
  options.segment_tokens = 1024;
  mneme_memory* memory = nullptr;
  EXPECT_OK(mneme_memory_create(store, name, card, &options, &memory));
  mneme_card_release(card);
  return memory;
}

bool HasBatch(mneme_memory* memory, int64_t batch) {
  for (const int32_t layer : {kLayer, kOtherLayer}) {
    Tensor keys({kBatch, kKvHeads, kKeyDim}), values({kBatch, kKvHeads, kValueDim});
    Tensor expected_keys({kBatch, kKvHeads, kKeyDim}), expected_values({kBatch, kKvHeads, kValueDim});
    expected_keys.Fill(SeedOf(batch, layer));
    expected_values.Fill(SeedOf(batch, layer) + 1);
    mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
    read.layer = layer;
    read.begin = batch * kBatch;
    read.tokens = kBatch;
    read.keys = &keys.view;
    read.values = &values.view;
    EXPECT_OK(mneme_memory_read(memory, &read));
    if (keys.data != expected_keys.data || values.data != expected_values.data) return false;
  }
  return true;
}

// Opens a store, verifies it, and compares memory "m" with what was appended. Returns: its batches.
int64_t CheckStore(const std::string& path) {
  mneme_store* store = nullptr;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.must_exist = 1;
  EXPECT_OK(mneme_store_open(path.c_str(), &options, &store));
  if (store == nullptr) return -1;
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  EXPECT_OK(mneme_store_verify(store, nullptr, nullptr, &report));
  EXPECT_EQ(report.damaged_memories + report.damaged_values + report.damaged_indexes, 0);
  int64_t batches = 0;
  mneme_memory* memory = nullptr;
  if (mneme_memory_open(store, "m", nullptr, &memory) == MNEME_OK) {
    EXPECT_EQ(InfoOf(memory).next_token % kBatch, 0) << "half a commit";
    batches = InfoOf(memory).next_token / kBatch;
    for (int64_t batch = 0; batch < batches; ++batch) EXPECT_TRUE(HasBatch(memory, batch)) << batch;
    EXPECT_OK(AppendBatch(memory, batches)) << "the restored store can be written to";
    EXPECT_OK(mneme_memory_close(memory));
  }
  EXPECT_OK(mneme_store_close(store));
  return batches;
}

mneme_status Backup(mneme_store* store, const std::string& folder, mneme_backup_info* info = nullptr,
                    int64_t keep = 0) {
  mneme_store_backup_args args = MNEME_STORE_BACKUP_ARGS_INIT;
  args.folder = folder.c_str();
  args.keep = keep;
  return mneme_store_backup(store, &args, info);
}

mneme_status Restore(const std::string& folder, const std::string& path, int64_t backup = 0) {
  mneme_store_restore_args args = MNEME_STORE_RESTORE_ARGS_INIT;
  args.folder = folder.c_str();
  args.path = path.c_str();
  args.backup = backup;
  return mneme_store_restore(&args);
}

std::vector<mneme_backup_info> List(const std::string& folder) {
  std::vector<mneme_backup_info> list;
  const auto visit = [](void* context, const mneme_backup_info* info) {
    static_cast<std::vector<mneme_backup_info>*>(context)->push_back(*info);
    return 0;
  };
  EXPECT_OK(mneme_backup_list(folder.c_str(), visit, &list));
  return list;
}

int64_t RestoreAndCheck(const std::string& folder, const std::string& path, int64_t backup = 0) {
  EXPECT_OK(Restore(folder, path, backup));
  const int64_t batches = CheckStore(path);
  fs::remove_all(path);
  return batches;
}

class BackupTest : public ::testing::Test {
 protected:
  BackupTest() {
    EXPECT_OK(mneme_store_open(folder_.store().c_str(), nullptr, &store_));
    memory_ = CreateMemory(store_, "m");
  }
  ~BackupTest() override {
    EXPECT_OK(mneme_memory_close(memory_));
    EXPECT_OK(mneme_store_close(store_));
  }

  // Appends batches until there are `batches`.
  void Grow(int64_t batches) {
    for (; batches_ < batches; ++batches_) ASSERT_OK(AppendBatch(memory_, batches_));
  }

  TempFolder folder_;
  const std::string backups_ = folder_.path() + "/backups/of/it";
  const std::string restored_ = folder_.path() + "/restored";
  mneme_store* store_ = nullptr;
  mneme_memory* memory_ = nullptr;
  int64_t batches_ = 0;
};

TEST_F(BackupTest, EachHoldsWhatWasCommittedThen) {
  mneme_backup_info info = MNEME_BACKUP_INFO_INIT;
  Grow(3);
  ASSERT_OK(Backup(store_, backups_, &info));
  EXPECT_EQ(info.id, 1);
  EXPECT_GT(info.unix_seconds, 1700000000);
  EXPECT_GT(info.bytes, 3 * kBatch * kKvHeads * (kKeyDim + kValueDim) * 4 * 2);
  EXPECT_GT(info.files, 5);
  EXPECT_EQ(info.damaged, 0);
  Grow(7);
  ASSERT_OK(Backup(store_, backups_, &info));
  // What is not committed is not in it.
  ASSERT_OK(AppendTokens(memory_, kLayer, 10));
  ASSERT_OK(Backup(store_, backups_));
  ASSERT_OK(mneme_memory_truncate(memory_, 2 * kBatch));
  ASSERT_OK(mneme_memory_commit(memory_, MNEME_DURABILITY_BUFFERED, nullptr));
  ASSERT_OK(Backup(store_, backups_));
  const std::vector<mneme_backup_info> list = List(backups_);
  ASSERT_EQ(list.size(), 4u);
  EXPECT_EQ(list[1].bytes, info.bytes);
  EXPECT_EQ(list[1].copied_bytes, 0);
  for (int64_t id = 1; id <= 4; ++id) EXPECT_OK(mneme_backup_verify(backups_.c_str(), id, nullptr, nullptr));
  EXPECT_EQ(RestoreAndCheck(backups_, restored_, 1), 3);
  EXPECT_EQ(RestoreAndCheck(backups_, restored_ + "/", 2), 7);
  EXPECT_EQ(RestoreAndCheck(backups_, restored_, 3), 7);
  ASSERT_TRUE(fs::create_directory(restored_));
  EXPECT_EQ(RestoreAndCheck(backups_, restored_), 2);
}

TEST_F(BackupTest, TheSecondCopiesWhatIsNew) {
  Grow(60);
  mneme_backup_info first = MNEME_BACKUP_INFO_INIT, second = MNEME_BACKUP_INFO_INIT, third = MNEME_BACKUP_INFO_INIT;
  ASSERT_OK(Backup(store_, backups_, &first));
  EXPECT_GE(first.copied_bytes, first.bytes);
  ASSERT_OK(Backup(store_, backups_, &second));
  EXPECT_LT(second.copied_bytes, first.copied_bytes / 2);
  Grow(64);
  ASSERT_OK(Backup(store_, backups_, &third));
  EXPECT_LT(third.copied_bytes, first.copied_bytes / 2);
  EXPECT_GT(third.copied_bytes, second.copied_bytes);
  RecordProperty("first", std::to_string(first.copied_bytes));
  RecordProperty("second", std::to_string(second.copied_bytes));
  RecordProperty("third", std::to_string(third.copied_bytes));
  EXPECT_EQ(RestoreAndCheck(backups_, restored_, 1), 60);
  EXPECT_EQ(RestoreAndCheck(backups_, restored_, 3), 64);
}

TEST_F(BackupTest, KeepsAsManyAsWanted) {
  for (int i = 1; i <= 4; ++i) {
    Grow(i);
    ASSERT_OK(Backup(store_, backups_, nullptr, 2));
  }
  const std::vector<mneme_backup_info> list = List(backups_);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].id, 3);
  EXPECT_EQ(list[1].id, 4);
  EXPECT_EQ(RestoreAndCheck(backups_, restored_, 3), 3);
  EXPECT_EQ(Restore(backups_, restored_, 1), MNEME_STATUS_NOT_FOUND);
}

TEST_F(BackupTest, DroppedMemoriesAreNotInIt) {
  ASSERT_OK(mneme_memory_close(CreateMemory(store_, "dropped")));
  Grow(2);
  ASSERT_OK(mneme_memory_drop(store_, "dropped"));
  ASSERT_OK(Backup(store_, backups_));
  ASSERT_OK(Restore(backups_, restored_));
  mneme_store* store = nullptr;
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_store_open(restored_.c_str(), nullptr, &store));
  EXPECT_EQ(mneme_memory_open(store, "dropped", nullptr, &memory), MNEME_STATUS_NOT_FOUND);
  EXPECT_OK(mneme_store_close(store));
}

TEST_F(BackupTest, CommitsGoOnMeanwhile) {
  std::atomic<bool> stop = false;
  std::atomic<int64_t> committed = 0;
  std::thread writer([&] {
    for (int64_t batch = 0; !stop && batch < 3000; ++batch) {
      ASSERT_OK(AppendBatch(memory_, batch));
      committed = batch + 1;
    }
  });
  std::vector<int64_t> before, after;
  for (int i = 0; i < 12; ++i) {
    before.push_back(committed);
    EXPECT_OK(Backup(store_, backups_));
    after.push_back(committed);
  }
  stop = true;
  writer.join();
  EXPECT_GT(after.back(), before.front() + 12) << "commits went on";
  for (size_t i = 0; i < before.size(); ++i) {
    const int64_t batches = RestoreAndCheck(backups_, restored_, static_cast<int64_t>(i) + 1);
    EXPECT_GE(batches, before[i]) << "backup " << i + 1;
    EXPECT_LE(batches, after[i] + 1) << "backup " << i + 1;
  }
}

// A process that commits and backs up until it is killed.
void WorkUntilKilled(const std::string& path) {
  mneme_store* store = nullptr;
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_store_open((path + "/store").c_str(), nullptr, &store));
  if (mneme_memory_open(store, "m", nullptr, &memory) != MNEME_OK) memory = CreateMemory(store, "m");
  std::thread writer([&] {
    for (int64_t batch = InfoOf(memory).next_token / kBatch;; ++batch) ASSERT_OK(AppendBatch(memory, batch));
  });
  for (;;) ASSERT_OK(Backup(store, path + "/backups", nullptr, 5));
}

int Rounds(int usual) {
  const char* const wanted = std::getenv("MNEME_BACKUP_ROUNDS");
  return wanted != nullptr ? std::max(1, std::atoi(wanted)) : usual;
}

TEST(KilledBackupTest, EarlierBackupsStayAndTheNextWorks) {
  if (const char* const path = ChildArgument()) return WorkUntilKilled(path);
  const TempFolder folder;
  const std::string backups = folder.path() + "/backups";
  std::mt19937 random(20261201);
  int64_t newest = 0, batches = 0;
  for (int round = 0; round < Rounds(6); ++round) {
    SCOPED_TRACE(round);
    const pid_t child = SpawnThisTest(folder.path());
    std::this_thread::sleep_for(std::chrono::milliseconds(150 + random() % 500));
    ASSERT_EQ(kill(child, SIGKILL), 0);
    EXPECT_GE(WaitFor(child), 1000) << "the child ended by itself";
    std::error_code error;
    if (!fs::exists(backups + "/meta", error)) continue;
    const std::vector<mneme_backup_info> list = List(backups);
    for (const mneme_backup_info& info : list) EXPECT_EQ(info.damaged, 0) << "backup " << info.id;
    if (list.empty()) continue;
    EXPECT_GE(list.back().id, newest) << "an acknowledged backup was lost";
    EXPECT_OK(mneme_backup_verify(backups.c_str(), list.front().id, nullptr, nullptr));
    const int64_t restored = RestoreAndCheck(backups, folder.path() + "/restored");
    if (list.back().id > newest) {
      EXPECT_GE(restored, batches);
    }
    newest = list.back().id, batches = restored;
    // The next backup after the kill.
    mneme_store* store = nullptr;
    ASSERT_OK(mneme_store_open(folder.store().c_str(), nullptr, &store));
    mneme_backup_info info = MNEME_BACKUP_INFO_INIT;
    EXPECT_OK(Backup(store, backups, &info, 5));
    EXPECT_GT(info.id, newest);
    newest = info.id;
    EXPECT_OK(mneme_store_close(store));
    batches = RestoreAndCheck(backups, folder.path() + "/restored");
    EXPECT_GE(batches, restored);
  }
  EXPECT_GT(newest, 0);
}

TEST(KilledRestoreTest, LeavesNothingAndTheNextWorks) {
  const char* const path = ChildArgument();
  if (path != nullptr) {
    for (;;) {
      ASSERT_OK(Restore(std::string(path) + "/backups", std::string(path) + "/restored"));
      fs::remove_all(std::string(path) + "/restored");
    }
  }
  const TempFolder folder;
  mneme_store* store = nullptr;
  ASSERT_OK(mneme_store_open(folder.store().c_str(), nullptr, &store));
  mneme_memory* const memory = CreateMemory(store, "m");
  for (int64_t batch = 0; batch < 40; ++batch) ASSERT_OK(AppendBatch(memory, batch));
  ASSERT_OK(Backup(store, folder.path() + "/backups"));
  ASSERT_OK(mneme_memory_close(memory));
  ASSERT_OK(mneme_store_close(store));
  const std::string restored = folder.path() + "/restored";
  std::mt19937 random(20261202);
  for (int round = 0; round < Rounds(5); ++round) {
    SCOPED_TRACE(round);
    const pid_t child = SpawnThisTest(folder.path());
    std::this_thread::sleep_for(std::chrono::milliseconds(60 + random() % 300));
    ASSERT_EQ(kill(child, SIGKILL), 0);
    WaitFor(child);
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.mode = MNEME_MODE_READ_ONLY;
    options.must_exist = 1;
    // A kill within the child's own removal of the folder leaves what it pleases, and restore refuses that.
    if (fs::exists(restored)) fs::remove_all(restored);
    EXPECT_EQ(mneme_store_open(restored.c_str(), &options, &store), MNEME_STATUS_NOT_FOUND);
    EXPECT_EQ(RestoreAndCheck(folder.path() + "/backups", restored), 40);
    EXPECT_FALSE(fs::exists(restored + ".restoring"));
  }
}

TEST_F(BackupTest, RestoreTakesRemainsOfOneThatWasKilled) {
  Grow(2);
  ASSERT_OK(Backup(store_, backups_));
  fs::create_directory(restored_ + ".restoring");
  std::ofstream(restored_ + ".restoring/000012.sst") << "half a file";
  EXPECT_EQ(RestoreAndCheck(backups_, restored_), 2);
  EXPECT_FALSE(fs::exists(restored_ + ".restoring"));
}

TEST_F(BackupTest, RestoreOverwritesNothing) {
  Grow(2);
  ASSERT_OK(Backup(store_, backups_));
  ExpectRefused(Restore(backups_, folder_.store()), MNEME_STATUS_ALREADY_EXISTS, "path");
  std::ofstream(restored_) << "a file";
  ExpectRefused(Restore(backups_, restored_), MNEME_STATUS_ALREADY_EXISTS, "path");
  EXPECT_EQ(fs::file_size(restored_), 6u);
}

TEST_F(BackupTest, DamageIsFoundAndNotRestored) {
  Grow(5);
  ASSERT_OK(Backup(store_, backups_));
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(backups_)) {
    if (!entry.is_regular_file() || entry.file_size() < 64 || entry.path().parent_path().filename() == "meta") continue;
    SCOPED_TRACE(entry.path().string());
    const std::string whole = ReadFile(entry.path());
    std::string flipped = whole;
    flipped[whole.size() / 2] ^= 0x10;
    WriteFile(entry.path(), flipped);
    EXPECT_EQ(mneme_backup_verify(backups_.c_str(), 0, nullptr, nullptr), MNEME_STATUS_DATA_LOSS);
    EXPECT_EQ(Restore(backups_, restored_), MNEME_STATUS_DATA_LOSS) << mneme_last_error();
    EXPECT_FALSE(fs::exists(restored_));
    EXPECT_FALSE(fs::exists(restored_ + ".restoring"));
    WriteFile(entry.path(), whole.substr(1));
    EXPECT_EQ(mneme_backup_verify(backups_.c_str(), 0, nullptr, nullptr), MNEME_STATUS_DATA_LOSS);
    EXPECT_EQ(Restore(backups_, restored_), MNEME_STATUS_DATA_LOSS) << mneme_last_error();
    fs::remove(entry.path());
    ASSERT_EQ(List(backups_).size(), 1u);
    EXPECT_EQ(List(backups_)[0].damaged, 1);
    EXPECT_EQ(Restore(backups_, restored_), MNEME_STATUS_DATA_LOSS) << mneme_last_error();
    EXPECT_FALSE(fs::exists(restored_));
    WriteFile(entry.path(), whole);
    ++files;
  }
  EXPECT_GT(files, 4);
  EXPECT_EQ(RestoreAndCheck(backups_, restored_), 5);
}

TEST(NewerBackupTest, IsNotRestored) {
  const TempFolder folder;
  const std::string backups = folder.path() + "/backups";
  Tamper(folder.store(), [&](rocksdb::DB& db, rocksdb::ColumnFamilyHandle& family) {
    std::string version("MNEM\2\0\0\0", 8);
    const uint32_t checksum = Checksum32(version.data(), version.size());
    version.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
    ASSERT_TRUE(db.Put(rocksdb::WriteOptions(), &family, "v", version).ok());
    rocksdb::BackupEngine* engine = nullptr;
    ASSERT_TRUE(
        rocksdb::BackupEngine::Open(rocksdb::BackupEngineOptions(backups), rocksdb::Env::Default(), &engine).ok());
    ASSERT_TRUE(engine->CreateNewBackup(&db).ok());
    delete engine;
  });
  EXPECT_EQ(Restore(backups, folder.path() + "/restored"), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_THAT(mneme_last_error(), ::testing::HasSubstr("newer mneme"));
  EXPECT_FALSE(fs::exists(folder.path() + "/restored"));
  EXPECT_FALSE(fs::exists(folder.path() + "/restored.restoring"));
}

TEST_F(BackupTest, ProgressReachesTheTotal) {
  Grow(40);
  struct Told {
    int64_t calls = 0, done = -1, total = 0;
    std::thread::id thread;
  } told;
  const auto progress = [](void* context, int64_t done, int64_t total) -> int {
    Told& seen = *static_cast<Told*>(context);
    EXPECT_LE(done, total);
    EXPECT_GE(done, seen.done);
    seen.calls++, seen.done = done, seen.total = total, seen.thread = std::this_thread::get_id();
    return 0;
  };
  mneme_store_backup_args args = MNEME_STORE_BACKUP_ARGS_INIT;
  args.folder = backups_.c_str();
  args.progress = progress;
  args.context = &told;
  ASSERT_OK(mneme_store_backup(store_, &args, nullptr));
  EXPECT_EQ(told.done, told.total);
  EXPECT_GT(told.total, 0);
  EXPECT_EQ(told.thread, std::this_thread::get_id());
  told = {};
  ASSERT_OK(mneme_backup_verify(backups_.c_str(), 0, progress, &told));
  EXPECT_EQ(told.done, told.total);
  told = {};
  mneme_store_restore_args restore = MNEME_STORE_RESTORE_ARGS_INIT;
  restore.folder = backups_.c_str();
  restore.path = restored_.c_str();
  restore.progress = progress;
  restore.context = &told;
  ASSERT_OK(mneme_store_restore(&restore));
  EXPECT_EQ(told.done, told.total);
  EXPECT_EQ(CheckStore(restored_), 40);
}

// Cancels at its call number *context, counted from 0.
int CancelAtCall(void* context, int64_t, int64_t) {
  return --*static_cast<int*>(context) < 0;
}

TEST_F(BackupTest, ProgressCancels) {
  Grow(40);
  ASSERT_OK(Backup(store_, backups_));
  Grow(200);
  int cancelled = 0;
  for (const int first : {0, 1}) {
    int calls = first;
    mneme_store_backup_args args = MNEME_STORE_BACKUP_ARGS_INIT;
    args.folder = backups_.c_str();
    args.progress = CancelAtCall;
    args.context = &calls;
    const mneme_status backed_up = mneme_store_backup(store_, &args, nullptr);
    calls = first;
    const mneme_status verified = mneme_backup_verify(backups_.c_str(), 0, CancelAtCall, &calls);
    calls = first;
    mneme_store_restore_args restore = MNEME_STORE_RESTORE_ARGS_INIT;
    restore.folder = backups_.c_str();
    restore.path = restored_.c_str();
    restore.progress = CancelAtCall;
    restore.context = &calls;
    const mneme_status restored = mneme_store_restore(&restore);
    for (const mneme_status status : {backed_up, verified, restored}) {
      // The second call may come when all is done, and then is too late.
      EXPECT_TRUE(status == MNEME_STATUS_CANCELLED || (first == 1 && status == MNEME_OK)) << mneme_last_error();
      cancelled += status == MNEME_STATUS_CANCELLED;
    }
    EXPECT_EQ(fs::exists(restored_), restored == MNEME_OK);
    EXPECT_FALSE(fs::exists(restored_ + ".restoring"));
    fs::remove_all(restored_);
  }
  EXPECT_GE(cancelled, 3);
  EXPECT_EQ(RestoreAndCheck(backups_, restored_, 1), 40);
  ASSERT_OK(Backup(store_, backups_));
  EXPECT_EQ(RestoreAndCheck(backups_, restored_), 200);
}

TEST_F(BackupTest, WrongArguments) {
  mneme_store_backup_args args = MNEME_STORE_BACKUP_ARGS_INIT;
  ExpectRefused(mneme_store_backup(store_, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "args");
  ExpectRefused(mneme_store_backup(store_, &args, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "args.folder");
  ExpectRefused(Backup(store_, ""), MNEME_STATUS_INVALID_ARGUMENT, "folder");
  ExpectRefused(Backup(store_, backups_, nullptr, -1), MNEME_STATUS_INVALID_ARGUMENT, "args.keep");
  ExpectRefused(Backup(store_, folder_.store() + "/backups"), MNEME_STATUS_INVALID_ARGUMENT, "folder");
  ExpectRefused(Backup(store_, folder_.store()), MNEME_STATUS_INVALID_ARGUMENT, "folder");
  fs::create_directory(folder_.path() + "/other");
  std::ofstream(folder_.path() + "/other/letter") << "mine";
  ExpectRefused(Backup(store_, folder_.path() + "/other"), MNEME_STATUS_INVALID_ARGUMENT, "folder");
  const auto visit = [](void*, const mneme_backup_info*) { return 0; };
  ExpectRefused(mneme_backup_list(nullptr, visit, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "folder");
  ExpectRefused(mneme_backup_list(backups_.c_str(), nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "visitor");
  ExpectRefused(mneme_backup_verify(nullptr, 0, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "folder");
  for (const std::string& none : {backups_, folder_.path() + "/other"}) {
    EXPECT_EQ(mneme_backup_list(none.c_str(), visit, nullptr), MNEME_STATUS_NOT_FOUND);
    EXPECT_EQ(mneme_backup_verify(none.c_str(), 0, nullptr, nullptr), MNEME_STATUS_NOT_FOUND);
    EXPECT_EQ(Restore(none, restored_), MNEME_STATUS_NOT_FOUND);
    EXPECT_FALSE(fs::exists(restored_));
  }
  mneme_store_restore_args restore = MNEME_STORE_RESTORE_ARGS_INIT;
  ExpectRefused(mneme_store_restore(nullptr), MNEME_STATUS_INVALID_ARGUMENT, "args");
  ExpectRefused(mneme_store_restore(&restore), MNEME_STATUS_INVALID_ARGUMENT, "args.folder");
  restore.folder = backups_.c_str();
  ExpectRefused(mneme_store_restore(&restore), MNEME_STATUS_INVALID_ARGUMENT, "args.path");
  ASSERT_OK(Backup(store_, backups_));
  ExpectRefused(Restore(backups_, ""), MNEME_STATUS_INVALID_ARGUMENT, "path");
  ExpectRefused(Restore(backups_, restored_, -1), MNEME_STATUS_INVALID_ARGUMENT, "args.backup");
  mneme_store* reader = nullptr;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.mode = MNEME_MODE_READ_ONLY;
  ASSERT_OK(mneme_store_open(folder_.store().c_str(), &options, &reader));
  EXPECT_EQ(Backup(reader, backups_), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_OK(mneme_store_close(reader));
}

// On a small tmpfs, in a mount namespace of its own.
void FillTheDisk(const std::string& disk) {
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) _exit(kSkip);
  const TempFolder folder;
  mneme_store* store = nullptr;
  ASSERT_OK(mneme_store_open(folder.store().c_str(), nullptr, &store));
  mneme_memory* const memory = CreateMemory(store, "m");
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=6m") != 0) _exit(kSkip);
  for (int64_t batch = 0; batch < 40; ++batch) ASSERT_OK(AppendBatch(memory, batch));
  ASSERT_OK(Backup(store, disk + "/backups"));
  for (int64_t batch = 40; batch < 200; ++batch) ASSERT_OK(AppendBatch(memory, batch));
  EXPECT_EQ(Backup(store, disk + "/backups"), MNEME_STATUS_RESOURCE_EXHAUSTED) << mneme_last_error();
  ASSERT_EQ(List(disk + "/backups").size(), 1u);
  EXPECT_OK(mneme_backup_verify((disk + "/backups").c_str(), 1, nullptr, nullptr));
  EXPECT_EQ(RestoreAndCheck(disk + "/backups", folder.path() + "/restored"), 40);
  ASSERT_OK(AppendBatch(memory, 200));
  ASSERT_EQ(mount("tmpfs", disk.c_str(), "tmpfs", MS_REMOUNT, "size=64m"), 0);
  ASSERT_OK(Backup(store, disk + "/backups"));
  EXPECT_EQ(RestoreAndCheck(disk + "/backups", folder.path() + "/restored"), 201);
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(store));
}

TEST(FullBackupDiskTest, HarmsNothing) {
  if (const char* const disk = ChildArgument()) return FillTheDisk(disk);
  const TempFolder folder;
  const int status = WaitFor(SpawnThisTest(folder.path()));
  if (status == kSkip) GTEST_SKIP() << "mounting a tmpfs is not permitted";
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace mneme
