// SPDX-License-Identifier: Apache-2.0
// Stores through the C ABI: options, modes, other processes, names, lists, the log.

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/capi/calls.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
constexpr int32_t kMost32 = std::numeric_limits<int32_t>::max(), kLeast32 = std::numeric_limits<int32_t>::min();

using StoreTest = CapiTest;

mneme_status Open(const std::string& path, mneme_store_mode mode, mneme_store** store, int32_t must_exist = 1) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.mode = mode;
  options.must_exist = must_exist;
  return mneme_store_open(path.c_str(), &options, store);
}

TEST_F(StoreTest, OpenRefuses) {
  struct Case {
    const char* argument;
    std::function<void(mneme_store_options&)> spoil;
  };
  const Case cases[] = {
      {"options.mode", [](auto& o) { o.mode = 3; }},
      {"options.mode", [](auto& o) { o.mode = -1; }},
      {"options.mode", [](auto& o) { o.mode = kLeast32; }},
      {"options.must_exist", [](auto& o) { o.must_exist = 2; }},
      {"options.must_exist", [](auto& o) { o.must_exist = -1; }},
      {"options.threads", [](auto& o) { o.threads = -1; }},
      {"options.threads", [](auto& o) { o.threads = 1025; }},
      {"options.threads", [](auto& o) { o.threads = kMost32; }},
      {"options.background", [](auto& o) { o.background = 2; }},
      {"options.background", [](auto& o) { o.background = kLeast32; }},
      {"options.ignore_index_blobs", [](auto& o) { o.ignore_index_blobs = -1; }},
      {"options.measure_latency", [](auto& o) { o.measure_latency = 2; }},
      {"options.ram_budget_bytes", [](auto& o) { o.ram_budget_bytes = -1; }},
      {"options.ram_budget_bytes", [](auto& o) { o.ram_budget_bytes = kLeast; }},
      {"options.disk_budget_bytes", [](auto& o) { o.disk_budget_bytes = -1; }},
      {"options.disk_budget_bytes", [](auto& o) { o.disk_budget_bytes = kLeast; }},
  };
  auto* const untouched = reinterpret_cast<mneme_store*>(uintptr_t{0x5a5a});
  mneme_store* store = untouched;
  const std::string path = folder_.path() + "/new";
  for (const Case& c : cases) {
    SCOPED_TRACE(c.argument);
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    c.spoil(options);
    ExpectRefused(mneme_store_open(path.c_str(), &options, &store), MNEME_STATUS_INVALID_ARGUMENT, c.argument);
  }
  const auto run_all = [](void*, size_t n, void (*task)(void*, size_t), void* context) {
    for (size_t i = 0; i < n; ++i) task(context, i);
  };
  for (const int32_t width : {0, -1, 4097, kMost32}) {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.parallel_for = run_all;
    options.parallel_for_width = width;
    ExpectRefused(mneme_store_open(path.c_str(), &options, &store), MNEME_STATUS_INVALID_ARGUMENT,
                  "options.parallel_for_width");
  }
  ExpectRefused(mneme_store_open(nullptr, nullptr, &store), MNEME_STATUS_INVALID_ARGUMENT, "path");
  ExpectRefused(mneme_store_open("", nullptr, &store), MNEME_STATUS_INVALID_ARGUMENT, "path");
  ExpectRefused(mneme_store_open(path.c_str(), nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "store");
  // A refused open leaves no folder behind, and one that may not create finds nothing.
  ExpectRefused(Open(path, MNEME_MODE_READ_WRITE, &store), MNEME_STATUS_NOT_FOUND, path);
  ExpectRefused(Open(path, MNEME_MODE_READ_ONLY, &store, 0), MNEME_STATUS_NOT_FOUND, path);
  ExpectRefused(Open(path, MNEME_MODE_FOLLOW, &store, 0), MNEME_STATUS_NOT_FOUND, path);
  struct stat info;
  EXPECT_EQ(stat(path.c_str(), &info), -1);
  // A file, and what lies below one.
  const std::string file = folder_.path() + "/file";
  fclose(fopen(file.c_str(), "w"));
  EXPECT_EQ(mneme_status_classify(mneme_store_open(file.c_str(), nullptr, &store)), MNEME_CLASS_CALLER)
      << mneme_last_error();
  EXPECT_EQ(mneme_status_classify(mneme_store_open((file + "/store").c_str(), nullptr, &store)), MNEME_CLASS_CALLER)
      << mneme_last_error();
  const std::string endless(5000, 'p');
  EXPECT_NE(mneme_store_open(("/tmp/" + endless).c_str(), nullptr, &store), MNEME_OK);
  EXPECT_EQ(store, untouched);
}

TEST_F(StoreTest, TheOtherFunctionsRefuseNull) {
  ExpectRefused(mneme_store_list(store_, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "visitor");
  ExpectRefused(mneme_store_verify(store_, nullptr, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "report");
  ExpectRefused(mneme_store_get_stats(store_, nullptr), MNEME_STATUS_INVALID_ARGUMENT, "stats");
}

TEST_F(StoreTest, OneWriterAtATimeInThisProcess) {
  auto* const untouched = reinterpret_cast<mneme_store*>(uintptr_t{0x5a5a});
  mneme_store* second = untouched;
  ExpectRefused(Open(folder_.store(), MNEME_MODE_READ_WRITE, &second), MNEME_STATUS_FAILED_PRECONDITION,
                folder_.store());
  EXPECT_EQ(second, untouched);
}

bool Exists(const std::string& path) {
  return access(path.c_str(), F_OK) == 0;
}

void Touch(const std::string& path) {
  fclose(fopen(path.c_str(), "w"));
}

// Waits for another process, a minute at most.
bool Appears(const std::string& path) {
  for (int i = 0; i < 60000 && !Exists(path); ++i) usleep(1000);
  return Exists(path);
}

TEST(ProcessesTest, OneWriterAtATime) {
  if (const char* const theirs = ChildArgument()) {
    const std::string path = theirs;
    mneme_store* store = nullptr;
    ASSERT_OK(mneme_store_open((path + "/store").c_str(), nullptr, &store));
    Touch(path + "/open");
    ASSERT_TRUE(Appears(path + "/go"));
    _exit(0);  // as if killed: nothing is closed
  }
  const TempFolder folder;
  const pid_t child = SpawnThisTest(folder.path());
  ASSERT_TRUE(Appears(folder.path() + "/open"));
  mneme_store* store = nullptr;
  ExpectRefused(Open(folder.store(), MNEME_MODE_READ_WRITE, &store), MNEME_STATUS_FAILED_PRECONDITION, folder.store());
  EXPECT_EQ(store, nullptr);
  ASSERT_OK(Open(folder.store(), MNEME_MODE_READ_ONLY, &store));
  EXPECT_OK(mneme_store_close(store));
  Touch(folder.path() + "/go");
  EXPECT_EQ(WaitFor(child), 0);
  ASSERT_OK(Open(folder.store(), MNEME_MODE_READ_WRITE, &store));
  EXPECT_OK(mneme_store_close(store));
}

TEST_F(StoreTest, ReadersReadAndChangeNothing) {
  for (const mneme_store_mode mode : {MNEME_MODE_READ_ONLY, MNEME_MODE_FOLLOW}) {
    SCOPED_TRACE(mode);
    mneme_store* store = nullptr;
    ASSERT_OK(Open(folder_.store(), mode, &store));
    mneme_memory* memory = nullptr;
    mneme_memory* other = nullptr;
    ASSERT_OK(mneme_memory_open(store, "m", card_, &memory));
    EXPECT_EQ(InfoOf(memory).next_token, 300) << "what is committed";
    const std::string before = StateOf(memory);
    EXPECT_EQ(mneme_memory_create(store, "new", card_, nullptr, &other), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_EQ(mneme_memory_fork(memory, 0, "fork", &other), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_EQ(mneme_memory_drop(store, "m"), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_EQ(AppendTokens(memory, kLayer, 1), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_EQ(mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, nullptr), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_EQ(mneme_memory_truncate(memory, 0), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_EQ(mneme_memory_evict(memory, 10), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_EQ(mneme_memory_maintain(memory, nullptr, nullptr), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_THAT(mneme_last_error(), HasSubstr("reading only"));
    EXPECT_EQ(other, nullptr);
    EXPECT_TRUE(StateOf(memory) == before);
    AttendCall call(memory);
    EXPECT_OK(call.Run());
    mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
    EXPECT_OK(mneme_store_verify(store, nullptr, nullptr, &report));
    EXPECT_EQ(report.memories, 1);
    EXPECT_OK(mneme_memory_close(memory));
    EXPECT_OK(mneme_store_close(store));
  }
}

TEST_F(StoreTest, AFollowerSeesWhatIsCommittedWhenItOpensTheMemory) {
  mneme_store *fixed = nullptr, *follower = nullptr;
  ASSERT_OK(Open(folder_.store(), MNEME_MODE_READ_ONLY, &fixed));
  ASSERT_OK(Open(folder_.store(), MNEME_MODE_FOLLOW, &follower));
  ASSERT_OK(mneme_memory_commit(memory_, MNEME_DURABILITY_BUFFERED, nullptr));
  mneme_memory *old = nullptr, *current = nullptr;
  ASSERT_OK(mneme_memory_open(fixed, "m", nullptr, &old));
  ASSERT_OK(mneme_memory_open(follower, "m", nullptr, &current));
  EXPECT_EQ(InfoOf(old).next_token, 300);
  EXPECT_EQ(InfoOf(current).next_token, kTokens);
  EXPECT_OK(mneme_memory_close(old));
  EXPECT_OK(mneme_memory_close(current));
  EXPECT_OK(mneme_store_close(fixed));
  EXPECT_OK(mneme_store_close(follower));
}

struct Listing {
  std::vector<std::string> names;
  int64_t tokens = 0, bytes = 0;
  size_t stop_at = 1000;
};

int List(void* context, const char* name, int64_t tokens, int64_t bytes) {
  auto& listing = *static_cast<Listing*>(context);
  listing.names.emplace_back(name);
  listing.tokens += tokens;
  listing.bytes += bytes;
  return listing.names.size() >= listing.stop_at;
}

TEST_F(StoreTest, NamesOfAnyBytes) {
  const std::string names[] = {
      "a", std::string(255, 'x'), "../../etc/passwd", "with space\n", "\xff\xfe\x01", "Ünïcode 記憶", "'; DROP TABLE"};
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    mneme_memory* memory = NewMemory(name);
    ASSERT_OK(AppendTokens(memory, kLayer, 2));
    ASSERT_OK(AppendTokens(memory, kOtherLayer, 2));
    ASSERT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr));
    ASSERT_OK(mneme_memory_close(memory));
    ASSERT_OK(mneme_memory_open(store_, name.c_str(), card_, &memory));
    EXPECT_EQ(InfoOf(memory).next_token, 2);
    ASSERT_OK(mneme_memory_close(memory));
  }
  Listing all, two;
  ASSERT_OK(mneme_store_list(store_, List, &all));
  EXPECT_EQ(all.names.size(), std::size(names) + 1);
  EXPECT_TRUE(std::is_sorted(all.names.begin(), all.names.end()));
  EXPECT_EQ(all.tokens, static_cast<int64_t>(300 + 2 * std::size(names)));
  two.stop_at = 2;
  ASSERT_OK(mneme_store_list(store_, List, &two));
  EXPECT_EQ(two.names.size(), 2u) << "the visitor ends the listing";
  for (const std::string& name : names) EXPECT_OK(mneme_memory_drop(store_, name.c_str()));
  Listing rest;
  ASSERT_OK(mneme_store_list(store_, List, &rest));
  EXPECT_THAT(rest.names, ElementsAre("m"));
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  ASSERT_OK(mneme_store_get_stats(store_, &stats));
  EXPECT_EQ(stats.memories, 1);
  EXPECT_EQ(stats.open_memories, 1);
}

TEST_F(StoreTest, TheSameNameTwiceIsTheSameMemory) {
  mneme_memory* again = nullptr;
  ASSERT_OK(mneme_memory_open(store_, "m", card_, &again));
  EXPECT_EQ(again, memory_);
  ASSERT_OK(mneme_memory_close(again));
  EXPECT_EQ(InfoOf(memory_).next_token, kTokens) << "one opening is left";
  ExpectRefused(mneme_memory_drop(store_, "m"), MNEME_STATUS_FAILED_PRECONDITION, "name");
  ASSERT_OK(mneme_memory_close(memory_));
  mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
  ExpectRefused(mneme_memory_get_info(memory_, &info), MNEME_STATUS_INVALID_ARGUMENT, "memory");
  ExpectRefused(mneme_memory_close(memory_), MNEME_STATUS_INVALID_ARGUMENT, "memory");
  ASSERT_OK(mneme_memory_open(store_, "m", card_, &memory_));
  EXPECT_EQ(InfoOf(memory_).next_token, 300) << "what was not committed is gone";
}

TEST_F(StoreTest, CloseIsRefusedWhileAnythingIsOpen) {
  ExpectRefused(mneme_store_close(store_), MNEME_STATUS_FAILED_PRECONDITION, "store");
  mneme_snapshot* snapshot = nullptr;
  ASSERT_OK(mneme_snapshot_create(memory_, &snapshot));
  ASSERT_OK(mneme_memory_close(memory_));
  // A snapshot reads from the store, so it holds it open.
  ExpectRefused(mneme_store_close(store_), MNEME_STATUS_FAILED_PRECONDITION, "mneme_snapshot_release");
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  EXPECT_OK(mneme_store_get_stats(store_, &stats));
  ASSERT_OK(mneme_memory_open(store_, "m", card_, &memory_));
  // It is a snapshot of the memory as it was opened before.
  SearchCall search(memory_);
  search.snapshots[0] = snapshot;
  ExpectRefused(search.Run(), MNEME_STATUS_INVALID_ARGUMENT, "args.snapshots[0]");
  mneme_snapshot_release(snapshot);
}

TEST_F(StoreTest, ASnapshotOutlivesWhatItWasTakenOf) {
  mneme_snapshot* snapshot = nullptr;
  ASSERT_OK(mneme_snapshot_create(memory_, &snapshot));
  SearchCall before(memory_), after(memory_);
  before.snapshots[0] = after.snapshots[0] = snapshot;
  ASSERT_OK(before.Run());
  ASSERT_OK(mneme_memory_truncate(memory_, 3));
  ASSERT_OK(mneme_memory_commit(memory_, MNEME_DURABILITY_BUFFERED, nullptr));
  ASSERT_OK(AppendTokens(memory_, kLayer, 20, 99));
  ASSERT_OK(AppendTokens(memory_, kOtherLayer, 20, 98));
  ASSERT_OK(mneme_memory_evict(memory_, 2));
  ASSERT_OK(after.Run());
  EXPECT_EQ(before.keys.data, after.keys.data);
  EXPECT_EQ(before.values.data, after.values.data);
  for (int64_t i = 0; i < 2 * kQueryHeads * 3; ++i) EXPECT_EQ(before.tokens.data()[i], after.tokens.data()[i]);
  mneme_snapshot_release(snapshot);
}

TEST_F(StoreTest, ADiskBudgetRefusesTheCommitThatPassesIt) {
  mneme_store* store = nullptr;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.disk_budget_bytes = 256 << 10;
  ASSERT_OK(mneme_store_open((folder_.path() + "/small").c_str(), &options, &store));
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_memory_create(store, "m", card_, nullptr, &memory));
  mneme_status status = MNEME_OK;
  int64_t durable = 0;
  for (int i = 0; i < 200 && status == MNEME_OK; ++i) {
    ASSERT_OK(AppendTokens(memory, kLayer, 200));
    ASSERT_OK(AppendTokens(memory, kOtherLayer, 200));
    status = mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, &durable);
  }
  ExpectRefused(status, MNEME_STATUS_RESOURCE_EXHAUSTED, "disk_budget_bytes");
  EXPECT_GT(durable, 0);
  EXPECT_EQ(InfoOf(memory).tokens_durable, durable);
  EXPECT_EQ(InfoOf(memory).next_token, durable + 200) << "still there to be read";
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(store));
}

void CollectLog(void* context, mneme_log_level level, const char* message) {
  EXPECT_EQ(level, MNEME_LOG_WARNING);
  static_cast<std::vector<std::string>*>(context)->emplace_back(message);
}

// What is damaged is told to the log, and verify counts it: see damage_test.cc. Here: no message without a reason.
TEST_F(StoreTest, TheLogIsQuietWhenAllIsWell) {
  const std::string path = folder_.path() + "/quiet";
  std::vector<std::string> messages;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.log = CollectLog;
  options.log_context = &messages;
  for (int round = 0; round < 2; ++round) {
    mneme_store* store = nullptr;
    ASSERT_OK(mneme_store_open(path.c_str(), &options, &store));
    mneme_memory* memory = nullptr;
    ASSERT_OK(round == 0 ? mneme_memory_create(store, "m", card_, nullptr, &memory)
                         : mneme_memory_open(store, "m", card_, &memory));
    ASSERT_OK(AppendTokens(memory, kLayer, 300));
    ASSERT_OK(AppendTokens(memory, kOtherLayer, 300));
    ASSERT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, nullptr));
    ASSERT_OK(mneme_memory_close(memory));
    ASSERT_OK(mneme_store_close(store));
  }
  EXPECT_THAT(messages, ElementsAre());
}

int CancelAt(void* context, int64_t done, int64_t total) {
  EXPECT_GE(done, 0);
  EXPECT_TRUE(total == 0 || done <= total) << done << " of " << total;
  return --*static_cast<int*>(context) < 0;
}

TEST_F(StoreTest, VerifyTellsItsProgressOverTheWholeStoreAndReadsWhatInfoCounts) {
  int64_t bytes = 0;
  for (const char* const name : {"a", "b", "c"}) {
    mneme_memory* const memory = NewMemory(name);
    for (const int32_t layer : {kLayer, kOtherLayer}) ASSERT_OK(AppendTokens(memory, layer, *name == 'b' ? 900 : 300));
    ASSERT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr));
    bytes += InfoOf(memory).bytes;
    EXPECT_OK(mneme_memory_close(memory));
  }
  ASSERT_OK(mneme_memory_truncate(memory_, 0));
  ASSERT_OK(mneme_memory_commit(memory_, MNEME_DURABILITY_BUFFERED, nullptr));
  struct Told {
    int64_t calls = 0, done = 0, total = 0;
  } told;
  const auto progress = [](void* context, int64_t done, int64_t total) {
    Told& told = *static_cast<Told*>(context);
    EXPECT_TRUE(told.calls == 0 || total == told.total) << total << " after " << told.total;
    EXPECT_GE(done, told.done);
    EXPECT_LE(done, total);
    told = {told.calls + 1, done, total};
    return 0;
  };
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  ASSERT_OK(mneme_store_verify(store_, progress, &told, &report));
  EXPECT_GE(told.calls, 3);
  EXPECT_EQ(told.done, told.total);
  EXPECT_EQ(told.total, bytes);
  EXPECT_EQ(report.bytes_read, bytes);
}

TEST_F(StoreTest, ACallbackCancels) {
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  report.memories = 77;
  int calls = 0;
  EXPECT_EQ(mneme_store_verify(store_, CancelAt, &calls, &report), MNEME_STATUS_CANCELLED);
  EXPECT_EQ(report.memories, 77);
  calls = 1000000;
  EXPECT_OK(mneme_store_verify(store_, CancelAt, &calls, &report));
  EXPECT_EQ(report.memories, 1);
  EXPECT_EQ(report.damaged_memories + report.damaged_values + report.damaged_indexes, 0);
  EXPECT_GT(report.bytes_read, 300 * 2 * 2 * 14 * 4);

  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.index = "flat";
  options.segment_tokens = 256;
  mneme_memory* const memory = NewMemory("indexed", &options);
  for (const int32_t layer : {kLayer, kOtherLayer}) ASSERT_OK(AppendTokens(memory, layer, 512));
  // The commit builds the index here, so truncate and append again to have one due that maintain builds.
  ASSERT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr));
  ASSERT_OK(mneme_memory_truncate(memory, 256));
  for (const int32_t layer : {kLayer, kOtherLayer}) ASSERT_OK(AppendTokens(memory, layer, 256));
  const std::string before = StateOf(memory).substr(sizeof(mneme_memory_info));
  calls = 0;
  EXPECT_EQ(mneme_memory_maintain(memory, CancelAt, &calls), MNEME_STATUS_CANCELLED) << mneme_last_error();
  EXPECT_TRUE(StateOf(memory).substr(sizeof(mneme_memory_info)) == before);
  calls = 1000000;
  EXPECT_OK(mneme_memory_maintain(memory, CancelAt, &calls));
  EXPECT_LT(calls, 1000000);
  EXPECT_GE(InfoOf(memory).indexes, 1);
  SearchCall search(memory);
  EXPECT_OK(search.Run());
  EXPECT_OK(mneme_memory_close(memory));
}

}  // namespace
}  // namespace mneme
