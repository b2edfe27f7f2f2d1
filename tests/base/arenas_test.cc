#include "base/arenas.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include "gtest/gtest.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "base/row_array.h"

namespace mneme {
namespace {

TEST(ArenaSourceTest, CutsNothingBeforeAHugePageHasBeenAskedFor) {
  ArenaSource source;
  constexpr size_t kBytes = 64 << 10;
  for (size_t asked = kBytes; asked < kHugePage; asked += kBytes) EXPECT_EQ(source.Cut(kBytes), nullptr);
#if defined(__linux__)
  char* const piece = source.Cut(kBytes);
  ASSERT_NE(piece, nullptr);
  ArenaSource::GiveBack(piece, kBytes);
  EXPECT_EQ(source.Cut(kHugePage), nullptr) << "is mapped by itself";
#endif
}

#if defined(__linux__)
TEST(ArenaSourceTest, PiecesAreApartAndOutliveTheSource) {
  struct Piece {
    char* data;
    size_t bytes;
  };
  std::vector<Piece> pieces;
  {
    ArenaSource source;
    while (source.Cut(1 << 20) == nullptr) {
    }
    for (size_t i = 0; i < 700; ++i) {
      const size_t bytes = 1000 + i * 977 % 200'000;
      char* const data = source.Cut(bytes);
      ASSERT_NE(data, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
      std::memset(data, static_cast<int>(i), bytes);
      pieces.push_back({data, bytes});
    }
  }
  // Given back in any order, the others stay.
  for (const size_t step : {size_t{3}, size_t{1}}) {
    for (size_t i = 0; i < pieces.size(); i += step) {
      if (pieces[i].data == nullptr) continue;
      for (const size_t at : {size_t{0}, pieces[i].bytes / 2, pieces[i].bytes - 1}) {
        ASSERT_EQ(pieces[i].data[at], static_cast<char>(i)) << "piece " << i << " of " << pieces[i].bytes;
      }
      ArenaSource::GiveBack(pieces[i].data, pieces[i].bytes);
      pieces[i].data = nullptr;
    }
  }
}

// What this is for: rows of equal places in many arrays must not want the same lines of a cache.
TEST(ArenaSourceTest, PiecesOfOneSizeBeginAtManyPlacesOfAPage) {
  ArenaSource source;
  constexpr size_t kBytes = 32 << 10;
  std::set<uintptr_t> places;
  std::vector<char*> pieces;
  while (pieces.size() < 180) {
    if (char* const piece = source.Cut(kBytes)) pieces.push_back(piece);
  }
  for (char* const piece : pieces) {
    places.insert(reinterpret_cast<uintptr_t>(piece) % kPage);
    ArenaSource::GiveBack(piece, kBytes);
  }
  EXPECT_EQ(places.size(), kPage / 64);
}
#endif

TEST(ArenaSourceTest, ArraysThatGrowTogetherKeepTheirRows) {
  constexpr size_t kRowBytes = 200;
  constexpr int64_t kRows = 3000;
  const auto source = std::make_shared<ArenaSource>();
  std::vector<std::unique_ptr<RowArray>> arrays;
  for (int i = 0; i < 40; ++i) arrays.push_back(std::make_unique<RowArray>(kRowBytes, source));
  std::vector<char> row(kRowBytes);
  for (int64_t r = 0; r < kRows; ++r) {
    for (size_t i = 0; i < arrays.size(); ++i) {
      std::memset(row.data(), static_cast<int>(static_cast<size_t>(r) * 7 + i), kRowBytes);
      if (i % 2 == 0) {
        arrays[i]->Append(row.data(), 1);
      } else {
        std::memcpy(arrays[i]->Next(), row.data(), kRowBytes);
        arrays[i]->Publish();
      }
    }
  }
  size_t held = 0;
  for (size_t i = 0; i < arrays.size(); ++i) {
    for (int64_t r = 0; r < kRows; ++r) {
      const char expected = static_cast<char>(static_cast<size_t>(r) * 7 + i);
      ASSERT_EQ(arrays[i]->Row(r)[0], expected) << "array " << i << " row " << r;
      ASSERT_EQ(arrays[i]->Row(r)[kRowBytes - 1], expected) << "array " << i << " row " << r;
    }
    held += arrays[i]->MemoryBytes();
    if (i % 3 == 0) arrays[i].reset();
    if (i + 1 < arrays.size()) {
      ASSERT_EQ(arrays[i + 1]->Row(kRows - 1)[0], static_cast<char>((kRows - 1) * 7 + static_cast<int64_t>(i) + 1));
    }
  }
  const size_t written = 40 * kRows * kRowBytes;
  EXPECT_GE(held, written);
  EXPECT_LE(held, 2 * written) << "what is resident and not written stays less than what is written";
}

// Many rows at once, over the ends of arenas, and one by one behind them.
TEST(RowArrayTest, AppendsOfAnySizeFollowOneAnother) {
  RowArray array(sizeof(int64_t));
  int64_t next = 0;
  for (const int64_t n : {255, 3, 1, 253, 700, 1, 5000, 1, 20, 1}) {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < n; ++i) rows.push_back(next++);
    array.Append(rows.data(), n);
    ASSERT_EQ(array.size(), next);
    for (int64_t row = 0; row < next; ++row) {
      int64_t value;
      std::memcpy(&value, array.Row(row), sizeof(value));
      ASSERT_EQ(value, row) << "of " << next;
    }
  }
}

#if defined(__linux__)
TEST(ArenaSourceTest, WhatIsGivenBackIsNoLongerMapped) {
  ArenaSource source;
  constexpr size_t kBytes = 64 << 10;
  while (source.Cut(1 << 20) == nullptr) {
  }
  for (int i = 0; i < 20; ++i) {
    char* const piece = source.Cut(kBytes);
    ASSERT_NE(piece, nullptr);
    char* const page = piece - reinterpret_cast<uintptr_t>(piece) % kPage;
    ArenaSource::GiveBack(piece, kBytes);
    unsigned char resident;
    for (size_t at = 0; at < kBytes + kPage; at += kPage) {
      EXPECT_EQ(mincore(page + at, kPage, &resident), -1) << "the page at " << at << " is still there";
    }
  }
}
#endif

}  // namespace
}  // namespace mneme
