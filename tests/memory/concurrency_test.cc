// SPDX-License-Identifier: Apache-2.0
// Calls that may run at the same time do, and others are refused as busy. Most useful under ThreadSanitizer.

#include <atomic>
#include <thread>

#include "tests/memory/attend_call.h"

namespace mneme {
namespace {

constexpr uint64_t kOwner = 21;

struct Setting {
  const char* index;
  bool background;
  int64_t segment_tokens = 256;
  size_t ram_budget_bytes = 0;
};

class ConcurrencyTest : public ::testing::TestWithParam<Setting> {
 protected:
  ConcurrencyTest() {
    StoreOptions options;
    options.background = GetParam().background;
    options.threads = 2;
    options.ram_budget_bytes = GetParam().ram_budget_bytes;
    if (options.ram_budget_bytes > 0) options.row_read_cost = 8;  // so that rows this small are read one by one
    store_ = OpenStore(folder_.store(), options);
    options_.segment_tokens = GetParam().segment_tokens;
    options_.index_spec = GetParam().index;
  }

  std::shared_ptr<Memory> Create(const std::string& name) { return *store_->CreateMemory(name, card_, options_); }

  ModelCard card_ = UnequalCard();
  MemoryOptions options_;
  TempFolder folder_;
  std::unique_ptr<Store> store_;
};

AttendCase CaseOf(const LayerCard& layer, Memory* memory, int64_t k) {
  AttendCase made;
  made.layer = layer;
  made.sequences = {{memory, nullptr, nullptr, 2, 3, 0, -1}};
  made.SetTopK(k);
  return made;
}

// Rows that no call changes give the same bits at any time, while later rows are appended, evicted and truncated.
TEST_P(ConcurrencyTest, ReadersGetTheSameBitsWhileTheMemoryChanges) {
  constexpr int64_t kStill = 700;
  const auto memory = Create("m");
  AppendTokens(*memory, nullptr, kOwner, 0, kStill);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));

  std::atomic<bool> stop{false};
  std::atomic<int64_t> calls{0};
  std::vector<std::thread> readers;
  for (uint32_t number = 0; number < 3; ++number) {
    readers.emplace_back([&, number] {
      TestRandom random(500 + number);
      // top_k is larger than the unchanged part, so indices use the exact scan and bits can be compared.
      AttendCase made = CaseOf(card_.layers[number % 2], memory.get(), kStill);
      made.sequences[0].memory_end = kStill;
      AttendCall call(random, made);
      ASSERT_OK(call.Run(store_->executor()));
      const AttendResult wanted = call.result();
      AttendCase all = CaseOf(card_.layers[(number + 1) % 2], memory.get(), 9);
      AttendCall moving(random, all);
      while (!stop) {
        ASSERT_OK(call.Run(store_->executor()));
        ASSERT_TRUE(call.result() == wanted);
        // Two searches of one snapshot give the same result.
        const Snapshot snapshot = memory->TakeSnapshot();
        for (const int64_t end : snapshot.layer_ends) ASSERT_GE(end, kStill);
        moving.SetMemory(0, memory.get(), &snapshot);
        ASSERT_OK(moving.Run());
        const AttendResult first = moving.result();
        ASSERT_OK(moving.Run(store_->executor()));
        ASSERT_TRUE(moving.result() == first);
        const MemoryInfo info = memory->Info();
        ASSERT_GE(info.next_token, kStill);
        ASSERT_GE(info.tokens_durable, kStill);
        std::vector<float> key(static_cast<size_t>(2 * 16));
        ReadRequest read;
        read.layer = 3;
        read.begin = kStill - 1;
        read.tokens = 1;
        read.keys = {key.data(), DType::kF32, 1, 2, 16, 32, 16};
        ASSERT_OK(memory->Read(read));
        ++calls;
      }
    });
  }
  TestRandom random(1);
  Oracle oracle(card_, options_);
  for (int64_t token = 0; token < kStill; token += 100) {
    for (size_t layer = 0; layer < 2; ++layer) {
      const Rows keys = KeysOf(kOwner, card_.layers[layer], token, 100);
      oracle.Append(layer, keys.tensor, ValuesOf(kOwner, card_.layers[layer], token, 100).tensor, nullptr, nullptr);
    }
  }
  for (int round = 0; round < 60 || calls < 60; ++round) {
    switch (random.Between(0, 9)) {
      case 0: {
        const int64_t to = std::max(kStill, oracle.Whole() - random.Between(0, 500));
        ASSERT_OK(memory->Truncate(to));
        oracle.Truncate(to);
        break;
      }
      case 1: {
        const std::string name = absl::StrCat("fork ", round);
        auto fork = store_->ForkMemory(memory, random.Between(0, oracle.Whole()), name);
        ASSERT_OK(fork.status());
        AppendTokens(**fork, nullptr, 3, (*fork)->Info().next_token, 10);
        ASSERT_OK(store_->CloseMemory(*fork));
        ASSERT_OK(store_->DropMemory(name));
        break;
      }
      case 2: ASSERT_OK(memory->Maintain(nullptr)); break;
      case 3: ASSERT_TRUE(store_->Stats().ok()); break;
      case 4: {
        VerifyReport report;
        ASSERT_OK(store_->Verify(nullptr, &report));
        ASSERT_EQ(report.damaged_values, 0);
        ASSERT_EQ(report.damaged_indexes, 0);
        break;
      }
      default:
        AppendTokens(*memory, &oracle, kOwner, oracle.Whole(), random.Between(1, 200));
        if (random.Chance(0.6)) ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
    }
    if (::testing::Test::HasFailure()) break;
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  ExpectHolds(*memory, oracle);
}

// A snapshot keeps rows that the bound or a call evicts while it is read.
TEST_P(ConcurrencyTest, EvictionTakesNothingFromASnapshot) {
  options_.max_tokens = 600;
  options_.pinned_tokens = 4;
  const auto memory = Create("m");
  AppendTokens(*memory, nullptr, kOwner, 0, 650);
  std::atomic<bool> stop{false};
  std::atomic<int64_t> calls{0};
  std::vector<std::thread> readers;
  for (uint32_t number = 0; number < 2; ++number) {
    readers.emplace_back([&, number] {
      TestRandom random(900 + number);
      AttendCall call(random, CaseOf(card_.layers[number], memory.get(), 20));
      int64_t last_end = 0;
      while (!stop) {
        const Snapshot snapshot = memory->TakeSnapshot();
        ASSERT_GE(snapshot.layer_ends[number], last_end);
        last_end = snapshot.layer_ends[number];
        call.SetMemory(0, memory.get(), &snapshot);
        ASSERT_OK(call.Run());
        const AttendResult first = call.result();
        for (const int64_t token : first.tokens) {
          ASSERT_TRUE(token < 4 || token >= snapshot.state->first_kept) << token;
          ASSERT_LT(token, last_end);
        }
        std::this_thread::yield();
        ASSERT_OK(call.Run(store_->executor()));
        ASSERT_TRUE(call.result() == first);
        ++calls;
      }
    });
  }
  int64_t token = 650;
  for (int round = 0; (round < 40 || calls < 40) && !::testing::Test::HasFailure(); ++round) {
    AppendTokens(*memory, nullptr, kOwner, token, 150);
    token += 150;
    if (round % 2 == 0) ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
    if (round % 7 == 3) ASSERT_OK(memory->Evict(100));
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_LE(memory->Info().tokens, 600);
}

// A reader sees a row of the tail as a whole or not at all.
TEST_P(ConcurrencyTest, RowsOfTheTailAppearWhole) {
  const auto memory = Create("m");
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    const LayerCard& layer = card_.layers[0];
    while (!stop) {
      const int64_t end = memory->TakeSnapshot().layer_ends[0];
      if (end == 0) continue;
      std::vector<float> key(32), value(32);
      ReadRequest read;
      read.layer = layer.layer;
      read.begin = end - 1;
      read.tokens = 1;
      read.keys = {key.data(), DType::kF32, 1, 2, 16, 32, 16};
      read.values = {value.data(), DType::kF32, 1, 2, 16, 32, 16};
      ASSERT_OK(memory->Read(read));
      const Rows keys = KeysOf(kOwner, layer, end - 1, 1, options_.stored_dtype);
      const Rows values = ValuesOf(kOwner, layer, end - 1, 1, options_.stored_dtype);
      for (int64_t head = 0; head < 2; ++head) {
        std::vector<float> row(16);
        ConvertToF32(options_.stored_dtype, keys.tensor.Row(0, head), row.data(), 16);
        for (size_t i = 0; i < 16; ++i) ASSERT_EQ(key[static_cast<size_t>(head) * 16 + i], row[i]);
        ConvertToF32(options_.stored_dtype, values.tensor.Row(0, head), row.data(), 16);
        for (size_t i = 0; i < 16; ++i) ASSERT_EQ(value[static_cast<size_t>(head) * 16 + i], row[i]);
      }
    }
  });
  for (int64_t token = 0; token < 1500 && !::testing::Test::HasFailure(); ++token) {
    AppendTokens(*memory, nullptr, kOwner, token, 1);
    if (token % 100 == 99) ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  }
  stop = true;
  reader.join();
}

TEST_P(ConcurrencyTest, ASecondMutatorIsRefusedAsBusy) {
  const auto memory = Create("m");
  std::atomic<int64_t> busy{0};
  std::atomic<int64_t> appended{0};
  std::atomic<int64_t> tries{0};
  std::vector<std::thread> threads;
  const auto note = [&](const absl::Status& status) {
    if (status.ok()) return true;
    EXPECT_TRUE(absl::IsAborted(status)) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("busy"));
    ++busy;
    return false;
  };
  for (int number = 0; number < 3; ++number) {
    threads.emplace_back([&, number] {
      const Rows keys = KeysOf(kOwner, card_.layers[0], 0, 8);
      const Rows values = ValuesOf(kOwner, card_.layers[0], 0, 8);
      const Rows other_keys = KeysOf(kOwner, card_.layers[1], 0, 8);
      const Rows other_values = ValuesOf(kOwner, card_.layers[1], 0, 8);
      while ((busy == 0 || tries < 300) && tries < 1000000) {
        ++tries;
        if (note(memory->Append(3, keys.tensor, values.tensor, nullptr, nullptr))) ++appended;
        note(memory->Append(7, other_keys.tensor, other_values.tensor, nullptr, nullptr));
        if (number == 0) note(memory->Commit(Durability::kBuffered, nullptr));
        if (number == 1 && tries % 50 == 0) note(memory->Maintain(nullptr));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(busy, 0);
  EXPECT_EQ(memory->TakeSnapshot().layer_ends[0], 8 * appended);
}

TEST_P(ConcurrencyTest, MemoriesOfOneStoreAreIndependent) {
  std::vector<std::thread> threads;
  for (int number = 0; number < 3; ++number) {
    threads.emplace_back([&, number] {
      for (int round = 0; round < 2; ++round) {
        const std::string name = absl::StrCat("m", number);
        const auto memory = Create(name);
        Oracle oracle(card_, options_);
        for (int64_t token = 0; token < 600; token += 200) {
          AppendTokens(*memory, &oracle, static_cast<uint64_t>(number), token, 200);
          ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
        }
        ExpectHolds(*memory, oracle);
        ASSERT_OK(store_->CloseMemory(memory));
        ASSERT_OK(store_->DropMemory(name));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(Kinds, ConcurrencyTest,
                         ::testing::Values(Setting{"scan", false}, Setting{"flat", true}, Setting{"ivf", false},
                                           Setting{"centroid", true},
                                           Setting{"scan", false, 512, 20000}),  // rows on disk
                         [](const auto& info) {
                           return absl::StrCat(info.param.index, info.param.background ? "Background" : "",
                                               info.param.ram_budget_bytes > 0 ? "OnDisk" : "");
                         });

}  // namespace
}  // namespace mneme
