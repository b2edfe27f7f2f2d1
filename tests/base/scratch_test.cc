// SPDX-License-Identifier: Apache-2.0
#include "base/scratch.h"

#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace mneme {
namespace {

// Work that takes `bytes` in pieces of up to `most` bytes; the address of the first.
void* Use(size_t bytes, size_t most, uint32_t seed = 1) {
  std::mt19937 random(seed);
  Scratch scratch;
  void* first = nullptr;
  for (size_t taken = 0; taken < bytes;) {
    const size_t n = 1 + random() % most;
    void* const place = scratch.allocate(n, size_t{1} << random() % 7);
    std::memset(place, 0x5a, n);
    if (first == nullptr) first = place;
    taken += n;
  }
  return first;
}

TEST(ScratchTest, GivesMemoryThatIsAlignedAndItsOwn) {
  std::mt19937 random(7);
  Scratch scratch;
  struct Taken {
    unsigned char* place;
    size_t bytes;
    unsigned char mark;
  };
  std::vector<Taken> all;
  for (int i = 0; i < 2000; ++i) {
    const size_t bytes = i % 100 == 0 ? 100000 + random() % 100000 : random() % 300;
    const size_t alignment = size_t{1} << random() % 9;
    auto* const place = static_cast<unsigned char*>(scratch.allocate(bytes, alignment));
    ASSERT_EQ(reinterpret_cast<uintptr_t>(place) % alignment, 0u) << bytes << " bytes by " << alignment;
    all.push_back({place, bytes, static_cast<unsigned char>(i)});
    std::memset(place, all.back().mark, bytes);
  }
  for (const Taken& each : all) {
    for (size_t i = 0; i < each.bytes; ++i) ASSERT_EQ(each.place[i], each.mark);
  }
}

TEST(ScratchTest, KeepsItsMemoryForTheNext) {
  for (const size_t bytes : {size_t{1000}, size_t{3000000}}) {
    Use(bytes, 50000);
    void* const place = Use(bytes, 50000);  // in one piece by now
    const size_t held = ScratchHeld();
    EXPECT_GE(held, bytes);
    for (uint32_t round = 0; round < 20; ++round) {
      EXPECT_EQ(Use(bytes / (1 + round % 3), 50000), place);
      EXPECT_EQ(ScratchHeld(), held);
    }
  }
}

TEST(ScratchTest, LeavesWhatLiesBelowAlone) {
  Scratch below;
  std::pmr::vector<int> numbers(1000, 7, &below);
  for (int round = 0; round < 3; ++round) {
    Scratch above;
    std::pmr::vector<int> others(100000, round, &above);  // beyond the first piece
    {
      Scratch top;
      std::pmr::vector<int> more(50000, -1, &top);
    }
    others.resize(200000, round);
    EXPECT_EQ(std::vector<int>(others.begin(), others.end()), std::vector<int>(200000, round));
  }
  numbers.resize(2000, 7);
  EXPECT_EQ(std::vector<int>(numbers.begin(), numbers.end()), std::vector<int>(2000, 7));
}

TEST(ScratchTest, RefusesWhatWouldBeOverwritten) {
  Scratch below;
  std::pmr::vector<int> numbers(10, 1, &below);
  {
    Scratch above;
    EXPECT_THROW(numbers.resize(1000), std::logic_error);
  }
  std::thread([&] { EXPECT_THROW(numbers.resize(1000), std::logic_error); }).join();
  EXPECT_NO_THROW(numbers.resize(1000));
}

TEST(ScratchTest, IsOfOneThread) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int round = 0; round < 200; ++round) {
        Scratch scratch;
        std::pmr::vector<int> numbers(static_cast<size_t>(100 + 1000 * (round % 40)), t, &scratch);
        for (const int number : numbers) ASSERT_EQ(number, t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ScratchTest, GivesBackWhatIsTooMuchToKeep) {
  {
    Scratch scratch;
    ASSERT_NE(scratch.allocate(kMaxScratchKept / 2), nullptr);
    ASSERT_NE(scratch.allocate(kMaxScratchKept), nullptr);
    EXPECT_GT(ScratchHeld(), kMaxScratchKept);
  }
  EXPECT_LE(ScratchHeld(), kMaxScratchKept);
  Use(1000, 100);
  EXPECT_LE(ScratchHeld(), kMaxScratchKept);
}

TEST(ScratchTest, SurvivesWhatThereIsNoMemoryFor) {
  Scratch scratch;
  std::pmr::vector<int> numbers(10, 1, &scratch);
  EXPECT_THROW(static_cast<void>(scratch.allocate(SIZE_MAX / 2)), std::bad_alloc);
  numbers.resize(5000, 1);
  for (const int number : numbers) ASSERT_EQ(number, 1);
}

#if defined(__SANITIZE_ADDRESS__)
TEST(ScratchDeathTest, TellsAddressSanitizerWhatIsFree) {
  const auto touch_too_late = [] {
    Scratch below;
    volatile char* place;
    {
      Scratch above;
      place = static_cast<char*>(above.allocate(100));
      *place = 1;
    }
    *place = 2;
  };
  EXPECT_DEATH(touch_too_late(), "use-after-poison");
}
#endif

}  // namespace
}  // namespace mneme
