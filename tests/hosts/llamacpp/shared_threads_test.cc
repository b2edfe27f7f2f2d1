// SPDX-License-Identifier: Apache-2.0
// Tasks on ggml's threads: each runs once, on several threads where these are free, and alone where another thread has
// them. Needs llama.cpp, no model.
#include "hosts/llamacpp/src/shared_threads.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/include/mneme_llama.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<SharedThreads> Make(int32_t count) {
  std::unique_ptr<SharedThreads> threads;
  const Status status = SharedThreads::Create(count, nullptr, &threads);
  EXPECT_TRUE(status.ok()) << status.message();
  return threads;
}

void RunOn(SharedThreads& threads, size_t n, std::function<void(size_t)> task) {
  SharedThreads::ParallelFor(
      &threads, n, [](void* context, size_t i) { (*static_cast<std::function<void(size_t)>*>(context))(i); }, &task);
}

// How many of `count` tasks that wait for each other get to run at the same time. Ends after a while where they cannot.
int MostAtOnce(SharedThreads& threads, int count) {
  std::atomic<int> inside{0}, most{0};
  RunOn(threads, static_cast<size_t>(count), [&](size_t) {
    const int now = ++inside;
    for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(most == count ? 0 : 300);
    while (most < count && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    --inside;
  });
  return most;
}

TEST(SharedThreadsTest, RunsEveryTaskOnce) {
  for (const int32_t count : {1, 2, 5}) {
    const auto threads = Make(count);
    EXPECT_EQ(threads->count(), count);
    for (const size_t n : {size_t{0}, size_t{1}, size_t{3}, size_t{1000}}) {
      std::vector<std::atomic<int>> runs(n);
      RunOn(*threads, n, [&](size_t i) { ++runs[i]; });
      for (const auto& times : runs) ASSERT_EQ(times, 1);
    }
  }
}

TEST(SharedThreadsTest, ReturnsWhenAllHaveEnded) {
  const auto threads = Make(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<int> values(7, 0);  // not atomic: what tasks wrote must be there
    RunOn(*threads, values.size(), [&](size_t i) { values[i] = round; });
    for (const int value : values) ASSERT_EQ(value, round);
  }
}

TEST(SharedThreadsTest, SeveralThreadsTakePart) {
  const auto threads = Make(2);
  EXPECT_EQ(MostAtOnce(*threads, 2), 2);
  SharedThreads::Turn turn(*threads, 2);
  EXPECT_EQ(MostAtOnce(*threads, 2), 2) << "whose turn it is has them, too";
}

TEST(SharedThreadsTest, ATurnMayUseFewer) {
  const auto threads = Make(2);
  {
    SharedThreads::Turn turn(*threads, 1);
    EXPECT_EQ(MostAtOnce(*threads, 2), 1);
  }
  {
    SharedThreads::Turn turn(*threads, 9);
    EXPECT_EQ(MostAtOnce(*threads, 2), 2);
    EXPECT_EQ(MostAtOnce(*threads, 3), 2) << "no more than there are";
  }
  EXPECT_EQ(MostAtOnce(*threads, 2), 2);
}

TEST(SharedThreadsTest, OthersTasksRunAloneDuringATurn) {
  const auto threads = Make(2);
  std::set<std::thread::id> used;  // no lock: tasks that run on one thread need none
  std::thread::id own;
  {
    SharedThreads::Turn turn(*threads, 2);
    std::thread other([&] {
      own = std::this_thread::get_id();
      RunOn(*threads, 100, [&](size_t) { used.insert(std::this_thread::get_id()); });
    });
    other.join();
  }
  EXPECT_EQ(used, std::set<std::thread::id>{own});
  EXPECT_EQ(MostAtOnce(*threads, 2), 2) << "the turn is over";
}

TEST(SharedThreadsTest, ATurnWaitsForOthersTasks) {
  const auto threads = Make(2);
  std::atomic<bool> begun{false}, ended{false};
  std::thread other([&] {
    RunOn(*threads, 2, [&](size_t) {
      begun = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    });
    // Set after the threads were given back: a turn before that would come too early by more than this moment.
    ended = true;
  });
  while (!begun) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  { SharedThreads::Turn turn(*threads, 2); }
  const auto waited = std::chrono::steady_clock::now() - start;
  other.join();
  EXPECT_TRUE(ended);
  EXPECT_GE(waited, std::chrono::milliseconds(20));
}

TEST(SharedThreadsTest, ManyCallersAtOnce) {
  const auto threads = Make(2);
  std::vector<std::thread> callers;
  std::atomic<int64_t> sum{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 100; ++round) {
        std::unique_ptr<SharedThreads::Turn> turn;
        if (caller == 0) turn = std::make_unique<SharedThreads::Turn>(*threads, 2);
        int64_t own[16] = {};
        RunOn(*threads, 16, [&](size_t i) { own[i] = static_cast<int64_t>(i); });
        for (const int64_t value : own) sum += value;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 100 * 120);
}

TEST(SharedThreadsTest, ServesAStore) {
  mneme_llama_threads* threads = nullptr;
  ASSERT_EQ(mneme_llama_threads_create(3, nullptr, &threads), MNEME_OK) << mneme_llama_last_error();
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  ASSERT_EQ(mneme_llama_threads_fill_store_options(threads, &options), MNEME_OK);
  EXPECT_EQ(options.parallel_for_width, 3);
  std::atomic<int> runs{0};
  options.parallel_for(
      options.parallel_for_context, 10, [](void* count, size_t) { ++*static_cast<std::atomic<int>*>(count); }, &runs);
  EXPECT_EQ(runs, 10);
  mneme_llama_threads_release(threads);
  mneme_llama_threads_release(nullptr);
}

TEST(SharedThreadsTest, SaysWhatIsWrong) {
  mneme_llama_threads* threads = nullptr;
  for (const int32_t count : {0, -1, 513}) {
    EXPECT_EQ(mneme_llama_threads_create(count, nullptr, &threads), MNEME_STATUS_INVALID_ARGUMENT);
    EXPECT_THAT(mneme_llama_last_error(), HasSubstr("threads: expected 1 to 512, got " + std::to_string(count)));
  }
  EXPECT_EQ(threads, nullptr);
  EXPECT_EQ(mneme_llama_threads_create(2, nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT);
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  EXPECT_EQ(mneme_llama_threads_fill_store_options(nullptr, &options), MNEME_STATUS_INVALID_ARGUMENT);
  EXPECT_EQ(mneme_llama_set_threads(nullptr, nullptr), MNEME_STATUS_INVALID_ARGUMENT);
  ASSERT_EQ(mneme_llama_threads_create(2, nullptr, &threads), MNEME_OK);
  EXPECT_EQ(mneme_llama_threads_fill_store_options(threads, nullptr), MNEME_STATUS_INVALID_ARGUMENT);
  mneme_llama_threads_release(threads);
}

}  // namespace
}  // namespace mneme::llama
