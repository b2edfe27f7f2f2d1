// SPDX-License-Identifier: Apache-2.0
// A child made by fork() can do nothing to its parent's stores, and ends when it is told to.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

// The status of a child that runs `body` and then exit(): that of the process, 1000 + n if signal n ended it. A child
// that hangs is ended by SIGALRM.
int InChild(const std::function<int()>& body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    std::exit(body());
  }
  return WaitFor(child);
}

bool Refused(mneme_status status) {
  return status == MNEME_STATUS_FAILED_PRECONDITION && std::strstr(mneme_last_error(), "fork()") != nullptr;
}

using ForkTest = CapiTest;

TEST_F(ForkTest, AChildEndsPromptlyWithItsStatus) {
  EXPECT_EQ(InChild([] { return 7; }), 7);
  EXPECT_EQ(InChild([&] {
              mneme_memory_close(memory_);
              mneme_store_close(store_);
              return 3;
            }),
            3);
}

TEST_F(ForkTest, AHandlerThatTheHostRegisteredLaterRuns) {
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  static int end;
  end = pipes[1];
  EXPECT_EQ(InChild([&] {
              std::atexit([] { (void)!write(end, "x", 1); });
              return 0;
            }),
            0);
  close(pipes[1]);
  char said = 0;
  EXPECT_EQ(read(pipes[0], &said, 1), 1);
  EXPECT_EQ(said, 'x');
  close(pipes[0]);
}

TEST_F(ForkTest, EveryCallOfAChildIsRefused) {
  EXPECT_EQ(InChild([&]() -> int {
              int64_t durable = -5;
              mneme_store* store = nullptr;
              mneme_memory* memory = nullptr;
              mneme_snapshot* snapshot = nullptr;
              mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
              mneme_store_stats stats = MNEME_STORE_STATS_INIT;
              mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
              mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
              const mneme_memory_export_args exported = MNEME_MEMORY_EXPORT_ARGS_INIT;
              const mneme_memory_import_args imported = MNEME_MEMORY_IMPORT_ARGS_INIT;
              const bool refused[] = {
                  Refused(AppendTokens(memory_, kLayer, 3)),
                  Refused(mneme_memory_commit(memory_, MNEME_DURABILITY_SYNCED, &durable)),
                  Refused(mneme_memory_truncate(memory_, 0)),
                  Refused(mneme_memory_evict(memory_, 1)),
                  Refused(mneme_memory_maintain(memory_, nullptr, nullptr)),
                  Refused(mneme_snapshot_create(memory_, &snapshot)),
                  Refused(mneme_memory_get_info(memory_, &info)),
                  Refused(mneme_memory_get_layer(memory_, 0, &layer)),
                  Refused(mneme_memory_set_attachment(memory_, "a", "b", 1, 0)),
                  Refused(mneme_memory_get_attachment(memory_, "a", nullptr, 0, nullptr, nullptr)),
                  Refused(mneme_memory_list_attachments(
                      memory_, [](void*, const char*, size_t, int64_t) { return 0; }, nullptr)),
                  Refused(mneme_memory_fork(memory_, 10, "child", &memory)),
                  Refused(mneme_memory_export(memory_, &exported)),
                  Refused(mneme_memory_import(store_, &imported, &memory)),
                  Refused(mneme_memory_create(store_, "new", card_, nullptr, &memory)),
                  Refused(mneme_memory_open(store_, "m", card_, &memory)),
                  Refused(mneme_memory_drop(store_, "m")),
                  Refused(mneme_store_list(
                      store_, [](void*, const char*, int64_t, int64_t) { return 0; }, nullptr)),
                  Refused(mneme_store_compact(store_)),
                  Refused(mneme_store_backup(store_, nullptr, nullptr)),
                  Refused(mneme_store_restore(nullptr)),
                  Refused(mneme_backup_list("backups", nullptr, nullptr)),
                  Refused(mneme_backup_verify("backups", 0, nullptr, nullptr)),
                  Refused(mneme_store_verify(store_, nullptr, nullptr, &report)),
                  Refused(mneme_store_get_stats(store_, &stats)),
                  Refused(mneme_store_write_metrics(
                      store_, [](void*, const char*, size_t) {}, nullptr)),
                  Refused(mneme_memory_close(memory_)),
                  Refused(mneme_store_close(store_)),
                  Refused(mneme_store_open((folder_.path() + "/another").c_str(), nullptr, &store)),
              };
              int failed = 0;
              for (const bool one : refused) failed += !one;
              return failed + (durable != -5) + (store != nullptr) + (memory != nullptr) + (snapshot != nullptr);
            }),
            0);
}

TEST_F(ForkTest, TheParentLosesNothing) {
  const int64_t before = InfoOf(memory_).tokens;
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(InChild([&] {
                for (int k = 0; k < 20; ++k) {
                  AppendTokens(memory_, kLayer, 5);
                  mneme_memory_commit(memory_, MNEME_DURABILITY_SYNCED, nullptr);
                }
                mneme_memory_close(memory_);
                mneme_store_close(store_);
                return 0;
              }),
              0);
    ASSERT_OK(AppendTokens(memory_, kLayer, 7));
    ASSERT_OK(AppendTokens(memory_, kOtherLayer, 7));
    ASSERT_OK(mneme_memory_commit(memory_, MNEME_DURABILITY_SYNCED, nullptr));
  }
  EXPECT_EQ(InfoOf(memory_).tokens, before + 70);
  EXPECT_OK(mneme_memory_close(memory_));
  EXPECT_OK(mneme_store_close(store_));
  memory_ = nullptr, store_ = nullptr;
  ASSERT_OK(mneme_store_open(folder_.store().c_str(), nullptr, &store_));
  ASSERT_OK(mneme_memory_open(store_, "m", card_, &memory_));
  EXPECT_EQ(InfoOf(memory_).tokens, before + 70);
}

TEST_F(ForkTest, AChildThatLivesOnDoesNotKeepTheStoreLocked) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    pause();
    std::_Exit(0);
  }
  EXPECT_OK(mneme_memory_close(memory_));
  EXPECT_OK(mneme_store_close(store_));
  memory_ = nullptr, store_ = nullptr;
  EXPECT_OK(mneme_store_open(folder_.store().c_str(), nullptr, &store_));
  kill(child, SIGKILL);
  WaitFor(child);
}

// The same when the parent is killed and could not give its lock back.
TEST_F(ForkTest, NorDoesAChildOfAKilledProcess) {
  if (const char* path = ChildArgument(); path != nullptr) {
    mneme_store* store = nullptr;
    if (mneme_store_open(path, nullptr, &store) != MNEME_OK) std::_Exit(1);
    if (fork() == 0) {
      alarm(5);  // an orphan that outlives the process it was forked from
      pause();
    }
    kill(getpid(), SIGKILL);
  }
  const std::string path = folder_.path() + "/killed";
  EXPECT_EQ(WaitFor(SpawnThisTest(path)), 1000 + SIGKILL);
  mneme_store* store = nullptr;
  ASSERT_OK(mneme_store_open(path.c_str(), nullptr, &store));
  EXPECT_OK(mneme_store_close(store));
}

// Before the first store a process may fork as it likes.
TEST(ForkEarlyTest, AChildForkedBeforeTheFirstStoreMayUseOne) {
  if (const char* path = ChildArgument(); path != nullptr) {
    std::_Exit(InChild([&] {
      mneme_store* store = nullptr;
      if (mneme_store_open(path, nullptr, &store) != MNEME_OK) return 1;
      return mneme_store_close(store) == MNEME_OK ? 0 : 2;
    }));
  }
  const TempFolder folder;
  EXPECT_EQ(WaitFor(SpawnThisTest(folder.store())), 0);
}

}  // namespace
}  // namespace mneme
