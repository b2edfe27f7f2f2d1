// SPDX-License-Identifier: Apache-2.0
// Executors and calls from several threads.

#include <atomic>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/capi/calls.h"

namespace mneme {
namespace {

// A host's parallel-for: two threads and the calling one.
struct HostExecutor {
  std::atomic<int> calls = 0;
  std::atomic<size_t> tasks = 0;

  static void Run(void* context, size_t n, void (*task)(void*, size_t), void* task_context) {
    auto& host = *static_cast<HostExecutor*>(context);
    ++host.calls;
    std::atomic<size_t> next = 0;
    const auto work = [&] {
      for (size_t i = next++; i < n; i = next++) {
        ++host.tasks;
        task(task_context, i);
      }
    };
    std::thread first(work), second(work);
    work();
    first.join();
    second.join();
  }
};

// What attend and search give for a memory of 5,000 tokens in a store with `options`.
std::vector<float> Results(const mneme_store_options& options) {
  const TempFolder folder;
  mneme_store* store = nullptr;
  EXPECT_OK(mneme_store_open(folder.store().c_str(), &options, &store));
  mneme_card* const card = NewCard();
  mneme_memory* memory = nullptr;
  EXPECT_OK(mneme_memory_create(store, "m", card, nullptr, &memory));
  for (const int32_t layer : {kLayer, kOtherLayer}) EXPECT_OK(AppendTokens(memory, layer, 5000, 3));
  EXPECT_OK(mneme_memory_commit(memory, MNEME_DURABILITY_BUFFERED, nullptr));
  for (const int32_t layer : {kLayer, kOtherLayer}) EXPECT_OK(AppendTokens(memory, layer, 500, 4));
  constexpr int64_t kQueries = 70;
  Tensor query({kQueries, kQueryHeads, kKeyDim}), output({kQueries, kQueryHeads, kValueDim});
  query.Fill(8);
  std::vector<float> lse(kQueries * kQueryHeads), scores(kQueries * kQueryHeads * 8);
  std::vector<int64_t> tokens(kQueries * kQueryHeads * 8);
  mneme_attend_args attend = MNEME_ATTEND_ARGS_INIT;
  attend.layer = kLayer;
  attend.query = &query.view;
  attend.output = &output.view;
  attend.log_sum_exp = lse.data();
  attend.default_top_k = 8;
  const float decay[] = {0, 0.1f, 0, 0.2f};
  attend.decay = decay;
  attend.retrieved_tokens = tokens.data();
  attend.retrieved_scores = scores.data();
  attend.retrieved_stride = 8;
  EXPECT_OK(mneme_attend(&memory, 1, &attend));
  std::vector<float> results = output.data;
  results.insert(results.end(), lse.begin(), lse.end());
  results.insert(results.end(), scores.begin(), scores.end());
  results.insert(results.end(), tokens.begin(), tokens.end());
  EXPECT_OK(mneme_memory_close(memory));
  EXPECT_OK(mneme_store_close(store));
  mneme_card_release(card);
  return results;
}

TEST(ExecutorTest, TheNumberOfThreadsChangesNothing) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  const std::vector<float> one = Results(options);
  for (const int32_t threads : {2, 4}) {
    options.threads = threads;
    EXPECT_TRUE(Results(options) == one) << threads << " threads";
  }
  HostExecutor host;
  options.parallel_for = HostExecutor::Run;
  options.parallel_for_context = &host;
  options.parallel_for_width = 3;
  EXPECT_TRUE(Results(options) == one);
  EXPECT_GT(host.calls, 0);
  EXPECT_GT(host.tasks, 3u);
}

using ThreadsTest = CapiTest;

// Waits inside mneme_memory_maintain's callback until told to go on.
struct Gate {
  std::atomic<bool> entered = false, open = false;
  static int Wait(void* context, int64_t, int64_t) {
    auto& gate = *static_cast<Gate*>(context);
    gate.entered = true;
    while (!gate.open) std::this_thread::yield();
    return 0;
  }
};

TEST_F(ThreadsTest, ABusyMemoryIsNotClosed) {
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.index = "flat";
  options.segment_tokens = 256;
  mneme_memory* const memory = NewMemory("busy", &options);
  for (const int32_t layer : {kLayer, kOtherLayer}) ASSERT_OK(AppendTokens(memory, layer, 300));
  Gate gate;
  mneme_status maintained = MNEME_STATUS_INTERNAL;
  std::thread other([&] { maintained = mneme_memory_maintain(memory, Gate::Wait, &gate); });
  while (!gate.entered) std::this_thread::yield();
  ExpectRefused(mneme_memory_close(memory), MNEME_STATUS_ABORTED, "busy");
  ExpectRefused(mneme_store_close(store_), MNEME_STATUS_FAILED_PRECONDITION, "store");
  ExpectRefused(mneme_memory_drop(store_, "busy"), MNEME_STATUS_FAILED_PRECONDITION, "name");
  // Readers go on meanwhile.
  EXPECT_EQ(InfoOf(memory).next_token, 300);
  SearchCall search(memory);
  EXPECT_OK(search.Run());
  gate.open = true;
  other.join();
  EXPECT_EQ(maintained, MNEME_OK);
  EXPECT_OK(mneme_memory_close(memory));
}

TEST_F(ThreadsTest, VerifyKeepsTheStoreOpen) {
  ASSERT_OK(mneme_memory_close(memory_));
  Gate gate;
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  mneme_status verified = MNEME_STATUS_INTERNAL;
  std::thread other([&] { verified = mneme_store_verify(store_, Gate::Wait, &gate, &report); });
  while (!gate.entered) std::this_thread::yield();
  ExpectRefused(mneme_store_close(store_), MNEME_STATUS_ABORTED, "busy");
  gate.open = true;
  other.join();
  EXPECT_EQ(verified, MNEME_OK);
  ASSERT_OK(mneme_memory_open(store_, "m", card_, &memory_));
}

// Of calls that change one memory at once, each works or is told "busy"; readers never notice.
TEST_F(ThreadsTest, OneChangesWhileOthersRead) {
  std::atomic<bool> done = false;
  std::atomic<int64_t> appended = 0, refused = 0;
  const auto change = [&](int32_t layer) {
    for (int i = 0; i < 200; ++i) {
      const mneme_status status = i % 10 == 9 ? mneme_memory_commit(memory_, MNEME_DURABILITY_BUFFERED, nullptr)
                                              : AppendTokens(memory_, layer, 3, static_cast<uint32_t>(i));
      if (status == MNEME_STATUS_ABORTED) {
        EXPECT_THAT(mneme_last_error(), ::testing::HasSubstr("busy"));
        ++refused;
      } else {
        EXPECT_EQ(status, MNEME_OK) << mneme_last_error();
        if (i % 10 != 9) ++appended;
      }
    }
  };
  const auto read = [&] {
    int64_t last = 0;
    while (!done) {
      const int64_t next = InfoOf(memory_).next_token;
      EXPECT_GE(next, last);
      last = next;
      mneme_snapshot* snapshot = nullptr;
      EXPECT_OK(mneme_snapshot_create(memory_, &snapshot));
      SearchCall search(memory_);
      search.snapshots[0] = snapshot;
      EXPECT_OK(search.Run());
      AttendCall attend(memory_);
      EXPECT_OK(attend.Run());
      mneme_snapshot_release(snapshot);
    }
  };
  std::thread reader(read), second_reader(read), first(change, kLayer), second(change, kOtherLayer);
  first.join();
  second.join();
  done = true;
  reader.join();
  second_reader.join();
  EXPECT_GT(appended, 0);
  RecordProperty("refused_as_busy", static_cast<int>(refused));
}

// Closing twice at once: one closes, the other is told.
TEST_F(ThreadsTest, TwoClosesAtOnce) {
  for (int i = 0; i < 200; ++i) {
    mneme_memory* memory = nullptr;
    ASSERT_OK(i == 0 ? mneme_memory_create(store_, "twice", card_, nullptr, &memory)
                     : mneme_memory_open(store_, "twice", card_, &memory));
    std::atomic<int> closed = 0, refused = 0;
    std::atomic<bool> go = false;
    const auto close = [&] {
      while (!go) std::this_thread::yield();
      const mneme_status status = mneme_memory_close(memory);
      if (status == MNEME_OK) {
        ++closed;
      } else {
        EXPECT_TRUE(status == MNEME_STATUS_INVALID_ARGUMENT || status == MNEME_STATUS_ABORTED) << mneme_last_error();
        ++refused;
      }
    };
    std::thread first(close), second(close);
    go = true;
    first.join();
    second.join();
    // Each may have seen the other at work.
    if (closed == 0) {
      ASSERT_OK(mneme_memory_close(memory));
    }
    EXPECT_LE(closed, 1);
    EXPECT_EQ(closed + refused, 2);
  }
}

TEST_F(ThreadsTest, AReleaseDuringACallIsARelease) {
  std::atomic<bool> done = false;
  std::thread attending([&] {
    while (!done) {
      mneme_snapshot* snapshot = nullptr;
      EXPECT_OK(mneme_snapshot_create(memory_, &snapshot));
      std::thread release([&] { mneme_snapshot_release(snapshot); });
      SearchCall search(memory_);
      search.snapshots[0] = snapshot;
      const mneme_status status = search.Run();
      EXPECT_TRUE(status == MNEME_OK || status == MNEME_STATUS_INVALID_ARGUMENT) << mneme_last_error();
      release.join();
    }
  });
  for (int i = 0; i < 100; ++i) {
    mneme_snapshot* snapshot = nullptr;
    ASSERT_OK(mneme_snapshot_create(memory_, &snapshot));
    mneme_snapshot_release(snapshot);
  }
  done = true;
  attending.join();
  // No snapshot is left: the memory's store closes at the end of the test.
}

}  // namespace
}  // namespace mneme
