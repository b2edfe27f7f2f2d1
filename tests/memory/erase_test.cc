// SPDX-License-Identifier: Apache-2.0
// A dropped memory leaves nothing readable in the store's files once the store is closed.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/memory/testing.h"

namespace mneme {
namespace {

// Stands at every place of a token id of the memory, so that any four aligned or unaligned bytes of them show.
constexpr int32_t kSecretToken = 0x5EC2E7A1;
constexpr int32_t kKeptToken = 0x0C4E97A2;

std::vector<std::string> FilesWith(const std::string& folder, int32_t token) {
  const std::string bytes(reinterpret_cast<const char*>(&token), sizeof(token));
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (content.find(bytes) != std::string::npos) files.push_back(entry.path().filename());
  }
  return files;
}

class EraseTest : public testing::TestWithParam<int64_t> {
 protected:
  void Append(Memory& memory, int32_t token, int64_t tokens) {
    const std::vector<int32_t> ids(static_cast<size_t>(tokens), token);
    for (const LayerCard& layer : card_.layers) {
      EXPECT_OK(memory.Append(layer.layer, KeysOf(1, layer, 0, tokens).tensor, ValuesOf(1, layer, 0, tokens).tensor,
                              nullptr, ids.data()));
    }
    EXPECT_OK(memory.Commit(Durability::kBuffered, nullptr));
  }

  TempFolder folder_;
  const ModelCard card_ = UnequalCard();
};

// Tokens of the dropped memory: log records alone, chunks and log records, several segments.
INSTANTIATE_TEST_SUITE_P(Sizes, EraseTest, testing::Values(5, 300, 3000));

TEST_P(EraseTest, ADroppedMemoryCannotBeReadFromTheFiles) {
  for (const bool maintained : {false, true}) {
    const TempFolder folder;
    {
      const std::unique_ptr<Store> store = OpenStore(folder.store());
      std::shared_ptr<Memory> secret = *store->CreateMemory("secret", card_, MemoryOptions());
      std::shared_ptr<Memory> kept = *store->CreateMemory("kept", card_, MemoryOptions());
      // By turns, so that files hold rows of both.
      for (int64_t done = 0; done < GetParam(); done += 100) {
        Append(*secret, kSecretToken, std::min<int64_t>(100, GetParam() - done));
        Append(*kept, kKeptToken, 100);
      }
      if (maintained) EXPECT_OK(secret->Maintain(nullptr));
      ASSERT_OK(store->CloseMemory(secret));
      ASSERT_OK(store->CloseMemory(kept));
    }
    ASSERT_FALSE(FilesWith(folder.store(), kSecretToken).empty());
    {
      const std::unique_ptr<Store> store = OpenStore(folder.store());
      ASSERT_OK(store->DropMemory("secret"));
    }
    EXPECT_EQ(FilesWith(folder.store(), kSecretToken), std::vector<std::string>()) << "maintained: " << maintained;
    EXPECT_FALSE(FilesWith(folder.store(), kKeptToken).empty());
  }
}

// A process that is killed after a drop leaves data behind; Compact erases it, also from a store that was opened again.
TEST_P(EraseTest, CompactErasesWhatAKilledProcessDropped) {
  const pid_t process = fork();
  if (process == 0) {
    std::unique_ptr<Store> store = OpenStore(folder_.store());
    std::shared_ptr<Memory> secret = *store->CreateMemory("secret", card_, MemoryOptions());
    std::shared_ptr<Memory> kept = *store->CreateMemory("kept", card_, MemoryOptions());
    for (int64_t done = 0; done < GetParam(); done += 100) {
      Append(*secret, kSecretToken, std::min<int64_t>(100, GetParam() - done));
      Append(*kept, kKeptToken, 100);
    }
    bool ok = store->CloseMemory(secret).ok() && store->CloseMemory(kept).ok();
    // Opened again, the records lie in a table file and not in a log that the next open replays.
    secret.reset();
    kept.reset();
    ok = ok && store->Close().ok();
    store.reset();
    store = OpenStore(folder_.store());
    ok = ok && store->DropMemory("secret").ok();
    _exit(ok ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(process, &status, 0), process);
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  ASSERT_FALSE(FilesWith(folder_.store(), kSecretToken).empty());
  {
    const std::unique_ptr<Store> store = OpenStore(folder_.store());
    ASSERT_OK(store->Compact());
    EXPECT_EQ(FilesWith(folder_.store(), kSecretToken), std::vector<std::string>());
    std::shared_ptr<Memory> kept = *store->OpenMemory("kept", &card_);
    EXPECT_GE(kept->Info().tokens, 100);
    ASSERT_OK(store->CloseMemory(kept));
  }
  EXPECT_FALSE(FilesWith(folder_.store(), kKeptToken).empty());
}

}  // namespace
}  // namespace mneme
