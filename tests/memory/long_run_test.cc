// SPDX-License-Identifier: Apache-2.0
// A store that stays open over many small commits, forks, drops, evictions and truncations: the files of its folder
// stay in proportion to what is stored, as files, as bytes of the write-ahead log and as bytes of RocksDB's MANIFEST.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/memory/testing.h"

namespace mneme {
namespace {

struct FolderSizes {
  int64_t files = 0;
  uint64_t log_bytes = 0;       // of the write-ahead log
  uint64_t manifest_bytes = 0;  // of RocksDB's list of files
  uint64_t other_bytes = 0;
};

FolderSizes SizesOf(const std::string& folder) {
  FolderSizes sizes;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const uint64_t bytes = entry.file_size(error);
    if (error) continue;  // deleted just now
    const std::string name = entry.path().filename().string();
    ++sizes.files;
    (absl::EndsWith(name, ".log")          ? sizes.log_bytes
     : absl::StartsWith(name, "MANIFEST-") ? sizes.manifest_bytes
                                           : sizes.other_bytes) += bytes;
  }
  return sizes;
}

// Bounds that hold all the time: about one and a half to three times what 20,000 steps were seen to take.
constexpr int64_t kMostFiles = 60;
constexpr uint64_t kMostLogBytes = uint64_t{4} << 20;
constexpr uint64_t kMostManifestBytes = uint64_t{1} << 20;
constexpr uint64_t kMostOtherBytes = uint64_t{6} << 20;

class LongRunTest : public testing::Test {
 protected:
  void Append(Memory& memory, int64_t tokens) {
    for (const LayerCard& layer : card_.layers) {
      ASSERT_OK(memory.Append(layer.layer, KeysOf(1, layer, 0, tokens).tensor, ValuesOf(1, layer, 0, tokens).tensor,
                              nullptr, nullptr));
    }
    ASSERT_OK(memory.Commit(Durability::kBuffered, nullptr));
  }

  // One small change to one of a few memories.
  void Step(int step) {
    const std::string& name = names_[random_() % names_.size()];
    const std::shared_ptr<Memory> memory = *store_->OpenMemory(name, nullptr);
    Append(*memory, 1 + static_cast<int64_t>(random_() % 8));
    switch (step % 10) {
      case 0: ASSERT_OK(memory->Truncate(memory->Info().next_token / 2)); break;
      case 1: ASSERT_OK(memory->Evict(std::min<int64_t>(memory->Info().tokens, 100))); break;
      case 2: {
        names_.push_back(absl::StrCat("fork", step));
        const auto fork = store_->ForkMemory(memory, memory->Info().next_token, names_.back());
        ASSERT_OK(fork.status());
        ASSERT_OK(store_->CloseMemory(*fork));
        break;
      }
      case 3:
        // Grows enough to be sealed, now and then.
        if (step % 200 == 3) Append(*memory, 700);
        break;
      default: break;
    }
    ASSERT_OK(store_->CloseMemory(memory));
    while (names_.size() > 20) {
      ASSERT_OK(store_->DropMemory(names_.front()));
      names_.pop_front();
    }
  }

  TempFolder folder_;
  const ModelCard card_ = UnequalCard();
  std::unique_ptr<Store> store_ = OpenStore(folder_.store());
  std::deque<std::string> names_;
  std::mt19937 random_{1};
};

TEST_F(LongRunTest, FilesLogAndManifestStayBoundedByWhatIsStored) {
  const char* const given = std::getenv("MNEME_LONG_RUN_STEPS");
  const int steps = given != nullptr ? std::atoi(given) : 4000;
  for (const char* name : {"a", "b", "c"}) {
    const auto memory = store_->CreateMemory(name, card_, MemoryOptions());
    ASSERT_OK(memory.status());
    ASSERT_OK(store_->CloseMemory(*memory));
    names_.push_back(name);
  }
  FolderSizes most;
  for (int step = 0; step < steps; ++step) {
    ASSERT_NO_FATAL_FAILURE(Step(step)) << "step " << step;
    if (step % 50 != 0) continue;
    const FolderSizes now = SizesOf(folder_.store());
    most.files = std::max(most.files, now.files);
    most.log_bytes = std::max(most.log_bytes, now.log_bytes);
    most.manifest_bytes = std::max(most.manifest_bytes, now.manifest_bytes);
    most.other_bytes = std::max(most.other_bytes, now.other_bytes);
    ASSERT_LE(now.files, kMostFiles) << "step " << step;
    ASSERT_LE(now.log_bytes, kMostLogBytes) << "step " << step;
    ASSERT_LE(now.manifest_bytes, kMostManifestBytes) << "step " << step;
    ASSERT_LE(now.other_bytes, kMostOtherBytes) << "step " << step;
  }
  std::printf("%d steps: at most %lld files, %.1f MiB of log, %.2f MiB of MANIFEST, %.1f MiB else\n", steps,
              static_cast<long long>(most.files), static_cast<double>(most.log_bytes) / (1 << 20),
              static_cast<double>(most.manifest_bytes) / (1 << 20), static_cast<double>(most.other_bytes) / (1 << 20));
}

}  // namespace
}  // namespace mneme
