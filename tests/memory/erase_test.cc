// SPDX-License-Identifier: Apache-2.0
// A dropped memory leaves nothing readable in the store's files once the store is closed.

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

  // Two memories, written by turns, so that files hold rows of both.
  void Make(Store& store, bool maintain = false) {
    const std::shared_ptr<Memory> secret = *store.CreateMemory("secret", card_, MemoryOptions());
    const std::shared_ptr<Memory> kept = *store.CreateMemory("kept", card_, MemoryOptions());
    for (int64_t done = 0; done < GetParam(); done += 100) {
      Append(*secret, kSecretToken, std::min<int64_t>(100, GetParam() - done));
      Append(*kept, kKeptToken, 100);
    }
    if (maintain) EXPECT_OK(secret->Maintain(nullptr));
    EXPECT_OK(store.CloseMemory(secret));
    EXPECT_OK(store.CloseMemory(kept));
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
      Make(*store, maintained);
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

// A process that is killed after a drop leaves data behind, as does a copy of the folder made at that moment. Compact
// erases it.
TEST_P(EraseTest, CompactErasesWhatAKilledProcessDropped) {
  const std::string killed = folder_.path() + "/killed";
  {
    // Opened once more, so that the records lie in a table file and not in a log that the next open replays.
    {
      const std::unique_ptr<Store> store = OpenStore(folder_.store());
      Make(*store);
    }
    const std::unique_ptr<Store> store = OpenStore(folder_.store());
    ASSERT_OK(store->DropMemory("secret"));
    std::filesystem::copy(folder_.store(), killed, std::filesystem::copy_options::recursive);
  }
  ASSERT_FALSE(FilesWith(killed, kSecretToken).empty());
  const std::unique_ptr<Store> store = OpenStore(killed);
  ASSERT_OK(store->Compact());
  EXPECT_EQ(FilesWith(killed, kSecretToken), std::vector<std::string>());
  EXPECT_FALSE(FilesWith(killed, kKeptToken).empty());
  const std::shared_ptr<Memory> kept = *store->OpenMemory("kept", &card_);
  EXPECT_GE(kept->Info().tokens, 100);
  ASSERT_OK(store->CloseMemory(kept));
}

}  // namespace
}  // namespace mneme
