// SPDX-License-Identifier: Apache-2.0
#include "base/temporary_folder.h"

#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

std::vector<std::string> NamesIn(const fs::path& place) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(place)) names.push_back(entry.path().filename().string());
  return names;
}

void Write(const fs::path& path) {
  std::ofstream(path) << "text";
}

class TemporaryFolderTest : public ::testing::Test {
 protected:
  // A process that holds a folder with files in `place_` until it is killed. Sets `folder`: mneme-XXXXXX.
  pid_t StartHolder(fs::path* folder) {
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    const pid_t holder = fork();
    if (holder == 0) {
      const TemporaryFolder held(place_);
      fs::create_directories(held.path() + "/store");
      Write(held.path() + "/store/file");
      const std::string path = fs::path(held.path()).parent_path().string();
      if (write(ready[1], path.data(), path.size()) != static_cast<ssize_t>(path.size())) _exit(1);
      for (;;) pause();
    }
    close(ready[1]);
    char path[4096];
    const ssize_t size = read(ready[0], path, sizeof(path));
    close(ready[0]);
    EXPECT_GT(size, 0);
    *folder = std::string(path, static_cast<size_t>(std::max<ssize_t>(size, 0)));
    return holder;
  }

  static void Kill(pid_t holder) {
    kill(holder, SIGKILL);
    waitpid(holder, nullptr, 0);
  }

  const TemporaryFolder own_;
  const fs::path place_ = own_.path();
};

TEST_F(TemporaryFolderTest, IsRemovedWithItsFiles) {
  {
    const TemporaryFolder folder(place_);
    EXPECT_THAT(NamesIn(folder.path()), IsEmpty());
    Write(folder.path() + "/file");
    const TemporaryFolder second(place_);
    EXPECT_NE(folder.path(), second.path());
    EXPECT_TRUE(fs::exists(folder.path() + "/file")) << "a second folder of the same process removed the first";
  }
  EXPECT_THAT(NamesIn(place_), IsEmpty());
}

TEST_F(TemporaryFolderTest, TheNextOneRemovesAKilledOwnersFolder) {
  fs::path folder;
  const pid_t holder = StartHolder(&folder);
  EXPECT_TRUE(fs::exists(folder / "data/store/file"));
  { const TemporaryFolder next(place_); }
  EXPECT_TRUE(fs::exists(folder / "data/store/file")) << "a living owner's folder was removed";
  Kill(holder);
  EXPECT_TRUE(fs::exists(folder / "data/store/file"));
  const TemporaryFolder next(place_);
  EXPECT_FALSE(fs::exists(folder));
  EXPECT_TRUE(fs::exists(next.path()));
}

TEST_F(TemporaryFolderTest, FinishesARemovalThatWasCutShort) {
  fs::path folder;
  Kill(StartHolder(&folder));
  fs::remove_all(folder / "data");
  TemporaryFolder::RemoveAbandoned(place_);
  EXPECT_FALSE(fs::exists(folder));
}

TEST_F(TemporaryFolderTest, KeepsWhatItDidNotMake) {
  const auto make = [&](const std::string& name, bool lock) {
    fs::create_directories(place_ / name / "data");
    fs::permissions(place_ / name, fs::perms::owner_all);
    if (lock) std::ofstream(place_ / name / "lock");
  };
  make("mneme-noLock", false);
  make("mneme-longer0", true);
  make("other-abcdef", true);
  make("mneme-shared", true);
  fs::permissions(place_ / "mneme-shared", fs::perms::owner_all | fs::perms::group_all);
  make("mneme-filled", true);
  Write(place_ / "mneme-filled/lock");
  Write(place_ / "mneme-a_file");
  make("elsewhere", true);
  fs::create_directory_symlink(place_ / "elsewhere", place_ / "mneme-linked");
  make("mneme-lnlock", false);
  fs::create_symlink(place_ / "elsewhere/lock", place_ / "mneme-lnlock/lock");
  if (geteuid() == 0) {
    make("mneme-others", true);
    ASSERT_EQ(chown((place_ / "mneme-others").c_str(), 12345, 12345), 0);
  }
  const std::vector<std::string> before = NamesIn(place_);
  make("mneme-garbag", true);
  TemporaryFolder::RemoveAbandoned(place_);
  EXPECT_THAT(NamesIn(place_), ::testing::UnorderedElementsAreArray(before));
  for (const std::string& name : before) {
    EXPECT_TRUE(name == "mneme-a_file" || fs::exists(place_ / name / "data")) << name;
  }
}

TEST_F(TemporaryFolderTest, KeepsAnAbandonedFoldersLinkTargets) {
  fs::path folder;
  Kill(StartHolder(&folder));
  fs::create_directory(place_ / "kept");
  Write(place_ / "kept/file");
  fs::create_directory_symlink(place_ / "kept", folder / "data/link");
  TemporaryFolder::RemoveAbandoned(place_);
  EXPECT_THAT(NamesIn(place_), UnorderedElementsAre("kept"));
  EXPECT_TRUE(fs::exists(place_ / "kept/file"));
}

TEST_F(TemporaryFolderTest, SaysWhyItCannotBeMade) {
  EXPECT_THROW(TemporaryFolder(place_ / "missing"), std::system_error);
}

}  // namespace
}  // namespace mneme
