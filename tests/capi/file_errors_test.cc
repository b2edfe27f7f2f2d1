// SPDX-License-Identifier: Apache-2.0
// What the operating system refuses has a status and a class of its own, and a store that cannot be written can be
// read.

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;
constexpr int kSkip = 77;
constexpr int64_t kTokens = 5000;

mneme_status Open(const std::string& path, mneme_store_mode mode, mneme_store** store) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.mode = mode;
  return mneme_store_open(path.c_str(), &options, store);
}

// Opening fails as the caller's fault or as one that may pass, and the message names the path.
void ExpectOpenFails(const std::string& path, mneme_store_mode mode, mneme_status expected, mneme_class whose,
                     const std::string& words) {
  mneme_store* store = nullptr;
  const mneme_status status = Open(path, mode, &store);
  EXPECT_STREQ(mneme_status_name(status), mneme_status_name(expected)) << "mode " << mode << ": " << mneme_last_error();
  if (status == MNEME_OK) {
    mneme_store_close(store);
    return;
  }
  EXPECT_EQ(mneme_status_classify(status), whose);
  EXPECT_THAT(std::string(mneme_last_error()), ::testing::HasSubstr(path.substr(0, 200)));
  EXPECT_THAT(std::string(mneme_last_error()), ::testing::HasSubstr(words));
}

constexpr mneme_store_mode kModes[] = {MNEME_MODE_READ_WRITE, MNEME_MODE_READ_ONLY, MNEME_MODE_FOLLOW};

// Two memories, one of them with FAISS indices: sealed rows and rows of the tail. Closed, or left as by a kill.
void MakeStore(const std::string& path, bool close) {
  mneme_store* store = nullptr;
  ASSERT_OK(mneme_store_open(path.c_str(), nullptr, &store));
  mneme_card* const card = NewCard();
  std::vector<mneme_memory*> memories;
  for (const char* const index : {"auto", "hnsw"}) {
    mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
    options.index = index;
    options.segment_tokens = 2048;
    mneme_memory* memory = nullptr;
    ASSERT_OK(mneme_memory_create(store, index, card, &options, &memory));
    ASSERT_OK(AppendTokens(memory, kLayer, kTokens, 1));
    ASSERT_OK(AppendTokens(memory, kOtherLayer, kTokens, 2));
    ASSERT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr));
    memories.push_back(memory);
  }
  if (!close) _exit(::testing::Test::HasFailure() ? 1 : 0);
  for (mneme_memory* const memory : memories) EXPECT_OK(mneme_memory_close(memory));
  mneme_card_release(card);
  EXPECT_OK(mneme_store_close(store));
}

// Everything that only reads works in `path`.
void ExpectReadable(const std::string& path, mneme_store_mode mode) {
  mneme_store* store = nullptr;
  ASSERT_OK(Open(path, mode, &store)) << path;
  for (const char* const name : {"auto", "hnsw"}) {
    mneme_memory* memory = nullptr;
    ASSERT_OK(mneme_memory_open(store, name, nullptr, &memory));
    EXPECT_EQ(InfoOf(memory).next_token, kTokens);
    Tensor query({1, kQueryHeads, kKeyDim}), output({1, kQueryHeads, kValueDim});
    query.Fill(7);
    std::vector<int64_t> tokens(kQueryHeads * 8);
    mneme_attend_args args = MNEME_ATTEND_ARGS_INIT;
    args.layer = kLayer;
    args.query = &query.view;
    args.output = &output.view;
    args.default_top_k = 8;
    args.retrieved_tokens = tokens.data();
    args.retrieved_stride = 8;
    EXPECT_OK(mneme_attend(&memory, 1, &args)) << name << " in mode " << mode;
    for (const int64_t token : tokens) EXPECT_GE(token, 0);
    EXPECT_EQ(AppendTokens(memory, kLayer, 1), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_EQ(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr), MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_OK(mneme_memory_close(memory));
  }
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  EXPECT_OK(mneme_store_verify(store, nullptr, nullptr, &report));
  EXPECT_EQ(report.memories, 2);
  EXPECT_EQ(report.damaged_memories, 0);
  EXPECT_OK(mneme_store_close(store));
}

// As a user without any right of root.
void BecomeNobody() {
  if (geteuid() == 0 && (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0)) _exit(kSkip);
}

class FileErrorsTest : public ::testing::Test {
 protected:
  // Runs the test again in a process of its own that may change what it is. The folder is everybody's to enter.
  void Spawn() {
    ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
    ASSERT_EQ(chmod(fs::path(folder_.path()).parent_path().c_str(), 0711), 0);
    const int status = WaitFor(SpawnThisTest(folder_.path()));
    if (status == kSkip) GTEST_SKIP() << "the system does not permit it";
    EXPECT_EQ(status, 0);
  }
  // Makes the store in a process that ends, closed or killed.
  static void MakeBoth(const std::string& folder) {
    // First, while this process has no thread of RocksDB's that the child would lack.
    const pid_t child = fork();
    if (child == 0) MakeStore(folder + "/killed", false);
    ASSERT_EQ(WaitFor(child), 0);
    MakeStore(folder + "/closed", true);
  }
  TempFolder folder_;
};

TEST_F(FileErrorsTest, PathsThatCannotBeFolders) {
  const std::string& folder = folder_.path();
  std::ofstream(folder + "/file") << "x";
  ASSERT_EQ(symlink((folder + "/b").c_str(), (folder + "/a").c_str()), 0);
  ASSERT_EQ(symlink((folder + "/a").c_str(), (folder + "/b").c_str()), 0);
  std::string deep = folder;
  while (deep.size() < 5000) deep += "/" + std::string(200, 'd');
  for (const mneme_store_mode mode : kModes) {
    const auto refused = [mode](const std::string& path, const std::string& words) {
      ExpectOpenFails(path, mode, MNEME_STATUS_INVALID_ARGUMENT, MNEME_CLASS_CALLER, words);
    };
    refused(folder + "/" + std::string(300, 'n'), "File name too long");
    refused(deep, "File name too long");
    refused(folder + "/a", "Too many levels of symbolic links");
    refused(folder + "/a/store", "Too many levels of symbolic links");
    refused(folder + "/file", "expected a folder");
    refused(folder + "/file/store", "Not a directory");
    refused(folder + "/file/some/store", "Not a directory");
  }
  for (const mneme_store_mode mode : {MNEME_MODE_READ_ONLY, MNEME_MODE_FOLLOW}) {
    ExpectOpenFails(folder + "/none", mode, MNEME_STATUS_NOT_FOUND, MNEME_CLASS_CALLER, "no store");
    ExpectOpenFails(folder + "/none/store", mode, MNEME_STATUS_NOT_FOUND, MNEME_CLASS_CALLER, "no store");
  }
  EXPECT_FALSE(fs::exists(folder + "/none"));
  ASSERT_EQ(symlink((folder + "/none").c_str(), (folder + "/dangling").c_str()), 0);
  ExpectOpenFails(folder + "/dangling", MNEME_MODE_READ_WRITE, MNEME_STATUS_INVALID_ARGUMENT, MNEME_CLASS_CALLER,
                  "symbolic link");
}

TEST_F(FileErrorsTest, AStoreThatThisUserMayOnlyRead) {
  const char* const folder = ChildArgument();
  if (folder == nullptr) return Spawn();
  MakeBoth(folder);
  for (const char* const name : {"/closed", "/killed"}) chmod((std::string(folder) + name).c_str(), 0555);
  BecomeNobody();
  for (const std::string name : {"/closed", "/killed"}) {
    const std::string path = folder + name;
    ExpectOpenFails(path, MNEME_MODE_READ_WRITE, MNEME_STATUS_PERMISSION_DENIED, MNEME_CLASS_CALLER, "reading only");
    for (const mneme_store_mode mode : {MNEME_MODE_READ_ONLY, MNEME_MODE_FOLLOW}) ExpectReadable(path, mode);
  }
  ExpectOpenFails(std::string(folder) + "/new/store", MNEME_MODE_READ_WRITE, MNEME_STATUS_PERMISSION_DENIED,
                  MNEME_CLASS_CALLER, "Permission denied");
}

TEST_F(FileErrorsTest, AStoreThatThisUserMayNotRead) {
  const char* const folder = ChildArgument();
  if (folder == nullptr) return Spawn();
  MakeStore(folder + std::string("/closed"), true);
  const std::string path = folder + std::string("/closed");
  ASSERT_EQ(chmod(path.c_str(), 0), 0);
  BecomeNobody();
  for (const mneme_store_mode mode : kModes) {
    ExpectOpenFails(path, mode, MNEME_STATUS_PERMISSION_DENIED, MNEME_CLASS_CALLER, "Permission denied");
  }
  chmod(path.c_str(), 0755);  // a user's own folder, so that it can be removed
}

TEST_F(FileErrorsTest, FilesThatThisUserMayNotTouch) {
  const char* const folder = ChildArgument();
  if (folder == nullptr) return Spawn();
  // The folder is this user's, its files are not.
  const std::string path = folder + std::string("/closed");
  MakeStore(path, true);
  ASSERT_EQ(chmod(path.c_str(), 0777), 0);
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) chmod(entry.path().c_str(), 0);
  BecomeNobody();
  for (const mneme_store_mode mode : kModes) {
    ExpectOpenFails(path, mode, MNEME_STATUS_PERMISSION_DENIED, MNEME_CLASS_CALLER, "Permission denied");
  }
}

TEST_F(FileErrorsTest, RowsThatThisUserMayNotReadAreNotDamaged) {
  const char* const folder = ChildArgument();
  if (folder == nullptr) return Spawn();
  const std::string path = folder + std::string("/closed");
  MakeStore(path, true);
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    if (entry.path().extension() == ".blob") chmod(entry.path().c_str(), 0);
  }
  BecomeNobody();
  mneme_store* store = nullptr;
  ASSERT_OK(Open(path, MNEME_MODE_READ_ONLY, &store));
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  const mneme_status status = mneme_store_verify(store, nullptr, nullptr, &report);
  EXPECT_STREQ(mneme_status_name(status), "PERMISSION_DENIED") << mneme_last_error();
  EXPECT_EQ(report.damaged_values + report.damaged_indexes, 0);
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_memory_open(store, "auto", nullptr, &memory));
  Tensor values({100, kKvHeads, kValueDim});
  mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
  read.layer = kLayer;
  read.tokens = 100;
  read.values = &values.view;
  EXPECT_EQ(mneme_memory_read(memory, &read), MNEME_STATUS_PERMISSION_DENIED) << mneme_last_error();
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(store));
}

TEST_F(FileErrorsTest, AReadOnlyMedium) {
  const char* const folder = ChildArgument();
  if (folder == nullptr) return Spawn();
  MakeBoth(folder);
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      mount(folder, folder, nullptr, MS_BIND, nullptr) != 0 ||
      mount("none", folder, nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) != 0) {
    _exit(kSkip);
  }
  for (const std::string name : {"/closed", "/killed"}) {
    const std::string path = folder + name;
    ExpectOpenFails(path, MNEME_MODE_READ_WRITE, MNEME_STATUS_PERMISSION_DENIED, MNEME_CLASS_CALLER,
                    "Read-only file system");
    for (const mneme_store_mode mode : {MNEME_MODE_READ_ONLY, MNEME_MODE_FOLLOW}) ExpectReadable(path, mode);
  }
  ExpectOpenFails(folder + std::string("/new"), MNEME_MODE_READ_WRITE, MNEME_STATUS_PERMISSION_DENIED,
                  MNEME_CLASS_CALLER, "Read-only file system");
}

TEST_F(FileErrorsTest, AFolderThatLosesItsRightsWhileItIsOpen) {
  const char* const folder = ChildArgument();
  if (folder == nullptr) return Spawn();
  ASSERT_EQ(chmod(folder, 0777), 0);
  BecomeNobody();
  const std::string path = folder + std::string("/store");
  mneme_store* store = nullptr;
  ASSERT_OK(mneme_store_open(path.c_str(), nullptr, &store));
  mneme_card* const card = NewCard();
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_memory_create(store, "m", card, nullptr, &memory));
  ASSERT_OK(AppendTokens(memory, kLayer, kTokens));
  ASSERT_OK(AppendTokens(memory, kOtherLayer, kTokens));
  // A commit of whole chunks makes a new file.
  ASSERT_EQ(chmod(path.c_str(), 0555), 0);
  const mneme_status status = mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, nullptr);
  EXPECT_STREQ(mneme_status_name(status), "PERMISSION_DENIED") << mneme_last_error();
  EXPECT_EQ(mneme_status_classify(status), MNEME_CLASS_CALLER);
  EXPECT_THAT(std::string(mneme_last_error()), ::testing::HasSubstr(path));
  EXPECT_EQ(InfoOf(memory).next_token, kTokens) << "what was not committed can still be read";
  ASSERT_EQ(chmod(path.c_str(), 0755), 0);
  int64_t durable = 0;
  EXPECT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, &durable));
  EXPECT_EQ(durable, kTokens);
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(store));
  mneme_card_release(card);
}

TEST_F(FileErrorsTest, TooManyOpenFiles) {
  const char* const folder = ChildArgument();
  if (folder == nullptr) return Spawn();
  const std::string path = folder + std::string("/closed");
  MakeStore(path, true);
  const int next = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const rlimit limit = {static_cast<rlim_t>(next) + 2, static_cast<rlim_t>(next) + 2};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  for (const mneme_store_mode mode : kModes) {
    ExpectOpenFails(path, mode, MNEME_STATUS_RESOURCE_EXHAUSTED, MNEME_CLASS_TRANSIENT, "Too many open files");
  }
}

// A limit of this process while the object lives.
class LimitScope {
 public:
  LimitScope(__rlimit_resource resource, rlim_t limit) : resource_(resource) {
    EXPECT_EQ(getrlimit(resource_, &before_), 0);
    const rlimit small = {limit, before_.rlim_max};
    EXPECT_EQ(setrlimit(resource_, &small), 0);
  }
  ~LimitScope() { EXPECT_EQ(setrlimit(resource_, &before_), 0); }
  LimitScope(const LimitScope&) = delete;
  LimitScope& operator=(const LimitScope&) = delete;

 private:
  const __rlimit_resource resource_;
  rlimit before_ = {};
};

// A store in `folder` whose first commit fails, since no file may grow. The message of the commit goes to *message.
mneme_status FailToCommit(const std::string& folder, mneme_store** store, mneme_memory** memory, std::string* message) {
  std::signal(SIGXFSZ, SIG_IGN);
  EXPECT_OK(mneme_store_open((folder + "/store").c_str(), nullptr, store));
  mneme_card* const card = NewCard();
  EXPECT_OK(mneme_memory_create(*store, "m", card, nullptr, memory));
  mneme_card_release(card);
  EXPECT_OK(AppendTokens(*memory, kLayer, kTokens));
  EXPECT_OK(AppendTokens(*memory, kOtherLayer, kTokens));
  const LimitScope small(RLIMIT_FSIZE, 16 << 10);
  const mneme_status status = mneme_memory_commit(*memory, MNEME_DURABILITY_SYNCED, nullptr);
  *message = mneme_last_error();
  return status;
}

TEST_F(FileErrorsTest, FilesThatMayNotGrow) {
  const char* const folder = ChildArgument();
  if (folder == nullptr) return Spawn();
  mneme_store* store = nullptr;
  mneme_memory* memory = nullptr;
  std::string message;
  const mneme_status status = FailToCommit(folder, &store, &memory, &message);
  EXPECT_STREQ(mneme_status_name(status), "RESOURCE_EXHAUSTED") << message;
  EXPECT_THAT(message, ::testing::HasSubstr("File too large"));
  EXPECT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, nullptr));
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(store));
}

// A failed write has the next one open the database again. That is not begun where it cannot be ended.
TEST_F(FileErrorsTest, AStoreIsMendedOnlyWhereItCanBeWritten) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer reserves address space of its own";
#endif
  const char* const folder = ChildArgument();
  if (folder == nullptr) return Spawn();
  mneme_store* store = nullptr;
  mneme_memory* memory = nullptr;
  std::string message;
  ASSERT_EQ(FailToCommit(folder, &store, &memory, &message), MNEME_STATUS_RESOURCE_EXHAUSTED) << message;
  const auto commit = [&] { return mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, nullptr); };
  {
    const LimitScope full(RLIMIT_AS, AddressSpace() + (2 << 20));
    ExpectRefused(commit(), MNEME_STATUS_RESOURCE_EXHAUSTED, "a write needs room");
  }
  std::filesystem::remove_all(folder + std::string("/store"));
  ExpectRefused(commit(), MNEME_STATUS_FAILED_PRECONDITION, "deleted while it is open");
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(store));
}

}  // namespace
}  // namespace mneme
