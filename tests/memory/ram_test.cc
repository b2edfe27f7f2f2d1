// SPDX-License-Identifier: Apache-2.0
// RAM in proportion: an open memory of few tokens takes a few times the bytes of its rows, and freed bytes return to
// the system.

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/memory/testing.h"

namespace mneme {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
constexpr bool kMallocCounts = false;
int64_t InUse() {
  return 0;
}
#else
constexpr bool kMallocCounts = true;
int64_t InUse() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}
#endif

int64_t ResidentBytes() {
  long pages = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
  std::fclose(file);
  return resident * sysconf(_SC_PAGESIZE);
}

// 30 layers of 3 KV heads of 64, as in a model of 135 million parameters: a token has 22.5 KiB of f16 rows.
ModelCard ManyLayers() {
  ModelCard card;
  card.model_name = "many";
  card.weights_fingerprint = "w";
  for (int32_t layer = 0; layer < 30; ++layer) {
    LayerCard shape;
    shape.layer = layer;
    shape.query_heads = 9;
    shape.kv_heads = 3;
    shape.key_dim = shape.value_dim = 64;
    shape.scale = 0.125f;
    card.layers.push_back(shape);
  }
  return card;
}

class RamTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!kMallocCounts) GTEST_SKIP() << "a sanitizer's allocator is not counted by mallinfo2";
    store_ = OpenStore(folder_.store());
  }

  std::shared_ptr<Memory> New(const std::string& name, int64_t tokens) {
    absl::StatusOr<std::shared_ptr<Memory>> memory = store_->CreateMemory(name, card_, MemoryOptions());
    EXPECT_OK(memory.status());
    for (const LayerCard& layer : card_.layers) {
      EXPECT_OK((*memory)->Append(layer.layer, KeysOf(1, layer, 0, tokens).tensor, ValuesOf(1, layer, 0, tokens).tensor,
                                  nullptr, nullptr));
    }
    return *memory;
  }

  TempFolder folder_;
  const ModelCard card_ = ManyLayers();
  std::unique_ptr<Store> store_;
};

TEST_F(RamTest, OpenMemoriesTakeAFewTimesTheirRows) {
  constexpr int64_t kMemories = 40;
  // Rows, and the arrays of each layer and head.
  const struct { int64_t tokens, most_kib, least_percent; } cases[] = {{1, 104, 75}, {20, 900, 95}, {300, 8000, 95}};
  for (const auto& [tokens, most_kib, least_percent] : cases) {
    SCOPED_TRACE(absl::StrCat(tokens, " tokens"));
    const int64_t memories = tokens > 100 ? 4 : kMemories;
    std::vector<std::shared_ptr<Memory>> open;
    New(absl::StrCat("first", tokens), tokens);  // what the store keeps for all
    const int64_t before = InUse(), counted_before = store_->Stats()->ram_bytes;
    for (int64_t i = 0; i < memories; ++i) open.push_back(New(absl::StrCat(tokens, " of ", i), tokens));
    const int64_t held = InUse() - before, counted = store_->Stats()->ram_bytes - counted_before;
    EXPECT_LE(held / memories, most_kib << 10);
    EXPECT_GE(counted, held * least_percent / 100) << "of " << held;
    EXPECT_LE(counted, held * 105 / 100) << "of " << held;
    std::printf("%lld tokens: %lld KiB a memory, counted %.1f%%\n", static_cast<long long>(tokens),
                static_cast<long long>(held / memories >> 10),
                100.0 * static_cast<double>(counted) / static_cast<double>(held));
  }
}

TEST_F(RamTest, ClosedMemoriesReturnTheirRamToTheSystem) {
  constexpr int kMemories = 60;
  std::vector<std::shared_ptr<Memory>> open;
  const int64_t before = ResidentBytes();
  for (int i = 0; i < kMemories; ++i) open.push_back(New(absl::StrCat(i), 60));
  const int64_t opened = ResidentBytes();
  ASSERT_GE(opened - before, int64_t{60} << 20);
  // Every second memory stays until the end, so that the heap cannot simply shrink from its end.
  for (int i = 1; i < kMemories; i += 2) {
    ASSERT_OK(store_->CloseMemory(open[static_cast<size_t>(i)]));
    open[static_cast<size_t>(i)].reset();
  }
  EXPECT_LE(ResidentBytes(), opened - (opened - before) / 2 + (int64_t{24} << 20));
}

}  // namespace
}  // namespace mneme
