// SPDX-License-Identifier: Apache-2.0
// One folder is one store with one writer, whatever it is called, and stays it, whatever becomes of its name.

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/capi/testing.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

// Changes the working directory for one test.
class InFolder {
 public:
  explicit InFolder(const std::string& path) : before_(fs::current_path()) { fs::current_path(path); }
  ~InFolder() { fs::current_path(before_); }

 private:
  const fs::path before_;
};

class StoreFolderTest : public CapiTest {
 protected:
  // Appends and commits, synced; the status of the commit.
  mneme_status Commit(mneme_memory* memory, uint32_t seed = 9) {
    EXPECT_OK(AppendTokens(memory, kLayer, 20, seed));
    EXPECT_OK(AppendTokens(memory, kOtherLayer, 20, seed));
    return mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, nullptr);
  }

  void ExpectSecondWriterRefused(const std::string& path) {
    mneme_store* second = nullptr;
    EXPECT_EQ(mneme_store_open(path.c_str(), nullptr, &second), MNEME_STATUS_FAILED_PRECONDITION) << path;
    EXPECT_THAT(mneme_last_error(), HasSubstr("store is open by another writer")) << path;
    EXPECT_EQ(second, nullptr);
  }

  // Closes everything and opens the store at `path` again; the tokens of "m".
  int64_t TokensAfterReopen(const std::string& path) {
    EXPECT_OK(mneme_memory_close(memory_));
    EXPECT_OK(mneme_store_close(store_));
    memory_ = nullptr, store_ = nullptr;
    EXPECT_OK(mneme_store_open(path.c_str(), nullptr, &store_));
    if (store_ == nullptr) return -1;
    EXPECT_OK(mneme_memory_open(store_, "m", card_, &memory_));
    return InfoOf(memory_).tokens;
  }
};

TEST_F(StoreFolderTest, EveryNameOfTheFolderIsTheSameStore) {
  const std::string path = folder_.store();
  fs::create_symlink(path, folder_.path() + "/link");
  fs::create_directory_symlink(folder_.path(), folder_.path() + "/parent-link");
  const InFolder in(folder_.path());
  for (const std::string& name :
       {path, path + "/", path + "//", path + "/.", folder_.path() + "/./store", folder_.path() + "//store",
        path + "/../store", folder_.path() + "/link", folder_.path() + "/link/", folder_.path() + "/parent-link/store",
        std::string("store"), std::string("./store"), std::string("store/"), std::string("link")}) {
    ExpectSecondWriterRefused(name);
  }
  // What was refused has changed nothing.
  const int64_t before = InfoOf(memory_).next_token;
  ASSERT_OK(Commit(memory_));
  EXPECT_EQ(TokensAfterReopen("link/"), before + 20);
}

TEST_F(StoreFolderTest, ABindMountIsTheSameStore) {
  const std::string mounted = folder_.path() + "/mounted";
  fs::create_directory(mounted);
  if (mount(folder_.store().c_str(), mounted.c_str(), nullptr, MS_BIND, nullptr) != 0) {
    GTEST_SKIP() << "this process may not mount: " << strerror(errno);
  }
  ExpectSecondWriterRefused(mounted);
  umount(mounted.c_str());
}

TEST_F(StoreFolderTest, TheLockOutlivesFilesThatTheHostOpensAndCloses) {
  // POSIX record locks end with any close of the file in the process.
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_.store())) {
    close(open(entry.path().c_str(), O_RDONLY));
    std::ofstream(folder_.path() + "/copy") << std::ifstream(entry.path()).rdbuf();
  }
  close(open(folder_.store().c_str(), O_RDONLY | O_DIRECTORY));
  ExpectSecondWriterRefused(folder_.store());
  // Another process, which has none of this one's open files.
  const char* child = ChildArgument();
  if (child != nullptr) {
    mneme_store* second = nullptr;
    std::_Exit(mneme_store_open(child, nullptr, &second) == MNEME_STATUS_FAILED_PRECONDITION ? 0 : 1);
  }
  EXPECT_EQ(WaitFor(SpawnThisTest(folder_.store())), 0);
}

TEST_F(StoreFolderTest, ClosingGivesTheLockBack) {
  EXPECT_OK(mneme_memory_close(memory_));
  EXPECT_OK(mneme_store_close(store_));
  memory_ = nullptr, store_ = nullptr;
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(mneme_store_open((folder_.store() + "/").c_str(), nullptr, &store_));
    ASSERT_OK(mneme_store_close(store_));
    store_ = nullptr;
  }
}

TEST_F(StoreFolderTest, TheWorkingDirectoryDoesNotMatter) {
  const std::string elsewhere = folder_.path() + "/elsewhere";
  fs::create_directory(elsewhere);
  const InFolder in(folder_.path());
  mneme_store* store = nullptr;
  ASSERT_OK(mneme_store_open("relative-store", nullptr, &store));
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_memory_create(store, "a", card_, nullptr, &memory));
  fs::current_path(elsewhere);
  // A store of the same name where the process is now.
  mneme_store* other = nullptr;
  ASSERT_OK(mneme_store_open("relative-store", nullptr, &other));
  ASSERT_OK(mneme_store_close(other));
  const auto files = std::distance(fs::directory_iterator("relative-store"), fs::directory_iterator());
  for (uint32_t i = 0; i < 40; ++i) ASSERT_OK(Commit(memory, i));
  ASSERT_OK(mneme_memory_maintain(memory, nullptr, nullptr));
  EXPECT_EQ(std::distance(fs::directory_iterator("relative-store"), fs::directory_iterator()), files);
  EXPECT_EQ(std::distance(fs::directory_iterator(elsewhere), fs::directory_iterator()), 1);
  ASSERT_OK(mneme_memory_close(memory));
  ASSERT_OK(mneme_store_close(store));
  ASSERT_OK(mneme_store_open((folder_.path() + "/relative-store").c_str(), nullptr, &store));
  ASSERT_OK(mneme_memory_open(store, "a", card_, &memory));
  EXPECT_EQ(InfoOf(memory).tokens, 800);
  ASSERT_OK(mneme_memory_close(memory));
  ASSERT_OK(mneme_store_close(store));
}

TEST_F(StoreFolderTest, ARenamedFolderGoesOn) {
  const std::string renamed = folder_.path() + "/renamed";
  fs::rename(folder_.store(), renamed);
  for (uint32_t i = 0; i < 40; ++i) ASSERT_OK(Commit(memory_, i));
  ExpectSecondWriterRefused(renamed);
  // Another store takes the old name; neither sees the other's rows.
  mneme_store* other = nullptr;
  ASSERT_OK(mneme_store_open(folder_.store().c_str(), nullptr, &other));
  ASSERT_OK(Commit(memory_, 50));
  mneme_memory* memory = nullptr;
  EXPECT_EQ(mneme_memory_open(other, "m", card_, &memory), MNEME_STATUS_NOT_FOUND);
  ASSERT_OK(mneme_store_close(other));
  const int64_t tokens = InfoOf(memory_).tokens;
  EXPECT_EQ(TokensAfterReopen(renamed), tokens);
}

TEST_F(StoreFolderTest, ADeletedFolderRefusesCommitsAndServesNoOther) {
  fs::remove_all(folder_.store());
  EXPECT_EQ(Commit(memory_), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_THAT(mneme_last_error(), HasSubstr("was deleted"));
  // A new store by the same name is another one.
  mneme_store* other = nullptr;
  ASSERT_OK(mneme_store_open(folder_.store().c_str(), nullptr, &other));
  mneme_memory* memory = nullptr;
  ASSERT_OK(mneme_memory_create(other, "m", card_, nullptr, &memory));
  EXPECT_EQ(mneme_memory_commit(memory_, MNEME_DURABILITY_SYNCED, nullptr), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_EQ(InfoOf(memory).tokens, 0);
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(other));
  EXPECT_OK(mneme_memory_close(memory_));
  EXPECT_OK(mneme_store_close(store_));
  memory_ = nullptr, store_ = nullptr;
}

TEST_F(StoreFolderTest, AUmaskWithoutOwnRightsMakesNoUnreadableFile) {
  const mode_t before = umask(0777);
  for (uint32_t i = 0; i < 40; ++i) EXPECT_OK(Commit(memory_, i));
  EXPECT_OK(mneme_memory_maintain(memory_, nullptr, nullptr));
  umask(before);
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_.store())) {
    EXPECT_NE(entry.status().permissions() & fs::perms::owner_read, fs::perms::none) << entry;
  }
}

}  // namespace
}  // namespace mneme
