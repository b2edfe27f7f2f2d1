// SPDX-License-Identifier: Apache-2.0
// Memories with indices: builds, loads and rebuilds, and what an index may never return.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <set>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/memory/attend_call.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kOwner = 5;

TEST(PlanIndexRunsTest, RangesAreAlignedDisjointAndFew) {
  for (const int64_t unit : {1, 256}) {
    for (int64_t sealed = 0; sealed <= 2100; ++sealed) {
      const std::vector<TokenRange> plan = PlanIndexRuns(sealed * unit + unit / 2, unit);
      int64_t end = 0;
      for (const TokenRange& range : plan) {
        ASSERT_EQ(range.begin, end);
        int64_t size = range.end - range.begin;
        ASSERT_EQ(range.begin % size, 0);
        while (size > unit) {
          ASSERT_EQ(size % 4, 0);
          size /= 4;
        }
        ASSERT_EQ(size, unit);
        end = range.end;
      }
      ASSERT_EQ(end, sealed * unit);
      int64_t levels = 1;
      for (int64_t n = sealed; n >= 4; n /= 4) ++levels;
      ASSERT_LE(static_cast<int64_t>(plan.size()), 3 * levels);
    }
  }
}

// A row is indexed once for each size of range, and a replaced range does not return.
TEST(PlanIndexRunsTest, RangesStayUntilALargerOneReplacesThem) {
  std::vector<TokenRange> plan;
  std::vector<int> times_indexed(4096, 0);
  for (int64_t sealed = 1; sealed <= 4096; ++sealed) {
    const std::vector<TokenRange> next = PlanIndexRuns(sealed, 1);
    for (const TokenRange& range : next) {
      if (std::find(plan.begin(), plan.end(), range) != plan.end()) continue;
      for (int64_t token = range.begin; token < range.end; ++token) ++times_indexed[static_cast<size_t>(token)];
    }
    plan = next;
  }
  EXPECT_LE(*std::max_element(times_indexed.begin(), times_indexed.end()), 7);  // log4(4096) + 1
}

class IndexTest : public ::testing::TestWithParam<const char*> {
 protected:
  IndexTest() : random_(77) {
    options_.segment_tokens = 256;
    options_.index_spec = GetParam();
    Open();
  }

  void Open(bool background = false, bool ignore_index_blobs = false) {
    StoreOptions options;
    options.background = background;
    options.ignore_index_blobs = ignore_index_blobs;
    options.database.log = [this](absl::string_view message) {
      {
        absl::MutexLock lock(&log_mutex_);
        log_.emplace_back(message);
      }
      if (!hold_build_.exchange(false)) return;
      build_began_.Notify();
      absl::SleepFor(absl::Milliseconds(300));  // the test closes the store meanwhile
    };
    store_ = OpenStore(folder_.store(), options);
  }
  void Create(const std::string& name = "m") {
    auto memory = store_->CreateMemory(name, card_, options_);
    ASSERT_OK(memory.status());
    memory_ = *memory;
    oracle_ = std::make_unique<Oracle>(card_, options_);
  }
  void Fill(int64_t tokens, int64_t step = 300) {
    for (int64_t done = 0; done < tokens; done += step) {
      AppendTokens(*memory_, oracle_.get(), kOwner, oracle_->Whole(), std::min(step, tokens - done));
      ASSERT_OK(memory_->Commit(Durability::kBuffered, nullptr));
    }
  }
  void Close() {
    ASSERT_OK(store_->CloseMemory(memory_));
    memory_.reset();
    store_.reset();
  }
  void Reopen(bool background = false, bool ignore_index_blobs = false) {
    Close();
    Open(background, ignore_index_blobs);
    auto memory = store_->OpenMemory("m", &card_);
    ASSERT_OK(memory.status());
    memory_ = *memory;
  }
  StoreStats Stats() { return *store_->Stats(); }
  std::vector<std::string> Log() {
    absl::MutexLock lock(&log_mutex_);
    return log_;
  }

  // Searches the whole memory and a part of it, with a small and a large top_k, and checks what holds for any index.
  std::vector<AttendResult> Results() {
    TestRandom random(9);
    std::vector<AttendResult> results;
    for (size_t layer = 0; layer < 2; ++layer) {
      for (const int64_t k : {1, 10, 40}) {
        AttendCase made;
        made.layer = card_.layers[layer];
        made.sequences = {{memory_.get(), oracle_.get(), nullptr, 2, 3, 0, -1},
                          {memory_.get(), oracle_.get(), nullptr, 1, 0, 300, 1000}};
        made.SetTopK(k);
        made.approximate = true;
        AttendCall call(random, made);
        call.RunAndCheck();
        results.push_back(call.result());
      }
    }
    return results;
  }
  // Returns: the share of the rows that an exact memory of the same rows retrieves.
  double Recall() {
    MemoryOptions exact = options_;
    exact.index_spec = "scan";
    auto memory = *store_->CreateMemory(absl::StrCat("exact ", store_->Stats()->database.memory_count), card_, exact);
    AppendTokens(*memory, nullptr, kOwner, 0, oracle_->Whole());
    int64_t hits = 0, wanted = 0;
    AttendCase made;
    made.layer = card_.layers[0];
    made.sequences = {{memory_.get(), oracle_.get(), nullptr, 20, 0, 0, -1}};
    made.SetTopK(10);
    AttendCall call(random_, made);
    EXPECT_OK(call.Run());
    const std::vector<int64_t> got = call.result().tokens;
    call.SetMemory(0, memory.get());
    EXPECT_OK(call.Run());
    for (size_t at = 0; at < got.size(); at += 10) {
      const std::set<int64_t> found(got.begin() + static_cast<int64_t>(at),
                                    got.begin() + static_cast<int64_t>(at) + 10);
      for (size_t i = at; i < at + 10; ++i, ++wanted) hits += found.contains(call.result().tokens[i]) ? 1 : 0;
    }
    EXPECT_OK(store_->CloseMemory(memory));
    return static_cast<double>(hits) / static_cast<double>(wanted);
  }

  TestRandom random_;
  ModelCard card_ = UnequalCard();
  MemoryOptions options_;
  TempFolder folder_;
  absl::Mutex log_mutex_;
  std::vector<std::string> log_;
  std::atomic<bool> hold_build_ = false;
  absl::Notification build_began_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<Memory> memory_;
  std::unique_ptr<Oracle> oracle_;
};

TEST_P(IndexTest, BuiltByTheCommitAndLoadedWhenOpenedAgain) {
  Create();
  Fill(1800);
  EXPECT_EQ(memory_->Info().indexes, static_cast<int64_t>(PlanIndexRuns(1792, 256).size()));
  EXPECT_GT(Stats().indexes_built, 0);
  EXPECT_EQ(Stats().indexes_rebuilt, 0);
  const std::vector<AttendResult> results = Results();
  const double recall = Recall();
  std::printf("[  RECALL  ] %s: %.3f of the best 10 of 1800\n", GetParam(), recall);
  EXPECT_GE(recall, std::string(GetParam()) == "flat" ? 1.0 : 0.8);
  Reopen();
  EXPECT_EQ(Results(), results);
  EXPECT_GT(Stats().indexes_loaded, 0);
  EXPECT_EQ(Stats().indexes_built, 0);
  EXPECT_EQ(Stats().indexes_rebuilt, 0);
  EXPECT_THAT(Log(), IsEmpty());
  Fill(300);
  Results();
  VerifyReport report;
  ASSERT_OK(store_->Verify(nullptr, &report));
  EXPECT_EQ(report.damaged_indexes, 0);
  EXPECT_EQ(report.damaged_memories, 0);
  EXPECT_THAT(Log(), IsEmpty());
}

TEST_P(IndexTest, BuiltInTheBackgroundGivesTheSame) {
  Create();
  Fill(1500);
  const std::vector<AttendResult> results = Results();
  const int64_t indexes = memory_->Info().indexes;
  Close();
  Open(true);
  ASSERT_OK(store_->DropMemory("m"));
  Create();
  Fill(1500);
  for (int i = 0; i < 3000 && memory_->Info().indexes < indexes; ++i) {
    absl::SleepFor(absl::Milliseconds(10));
    if (i % 50 == 0) ASSERT_OK(memory_->Commit(Durability::kBuffered, nullptr));
  }
  // An earlier build may not have seen the last commit; Maintain builds what is left, often nothing.
  ASSERT_OK(memory_->Maintain(nullptr));
  EXPECT_EQ(memory_->Info().indexes, indexes);
  EXPECT_EQ(Results(), results);
  Reopen();
  EXPECT_EQ(Results(), results);
  EXPECT_EQ(Stats().indexes_rebuilt, 0);
}

TEST_P(IndexTest, AMissingOrDamagedBlobIsBuiltAgainAndReported) {
  Create();
  Fill(1100);
  const std::vector<AttendResult> results = Results();
  Reopen();
  const auto runs = memory_->TakeSnapshot().state->runs;
  ASSERT_FALSE(runs.empty());
  ASSERT_OK(store_->database().DropIndexes({runs[0]->id()}));
  Reopen();  // until then, what was dropped cannot be written again
  EXPECT_EQ(Results(), results);
  // Three indices: two KV heads of one layer and one of the other.
  EXPECT_EQ(Stats().indexes_rebuilt, 3);
  ASSERT_EQ(Log().size(), 3u);
  EXPECT_THAT(Log()[0], HasSubstr(absl::StrCat("index ", runs[0]->id())));
  EXPECT_THAT(Log()[0], HasSubstr("built again"));

  Reopen();
  std::string blob = *store_->database().GetIndexBlob(runs[0]->id(), 3, 1);
  for (const size_t at : {size_t{0}, blob.size() / 2}) {
    SCOPED_TRACE(absl::StrCat("byte ", at));
    std::string damaged = blob;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    ASSERT_OK(store_->database().PutIndexBlob(runs[0]->id(), 3, 1, damaged));
    VerifyReport report;
    ASSERT_OK(store_->Verify(nullptr, &report));
    EXPECT_EQ(report.damaged_indexes, 1);
    EXPECT_EQ(Stats().indexes_rebuilt, 0);
    EXPECT_EQ(Results(), results);
    EXPECT_EQ(Stats().indexes_rebuilt, 1);
    ASSERT_OK(memory_->Commit(Durability::kSynced, nullptr));
    Reopen();
    EXPECT_EQ(Results(), results);
    EXPECT_EQ(Stats().indexes_rebuilt, 0);  // the new blob was kept
    Reopen();
  }
}

TEST_P(IndexTest, IgnoredBlobsAreNeverParsed) {
  Create();
  Fill(1100);
  const std::vector<AttendResult> results = Results();
  const auto runs = memory_->TakeSnapshot().state->runs;
  Reopen(false, true);
  ASSERT_OK(store_->database().PutIndexBlob(runs[0]->id(), 3, 0, "not an index"));
  EXPECT_EQ(Results(), results);
  EXPECT_EQ(Stats().indexes_loaded, 0);
  EXPECT_EQ(Stats().indexes_rebuilt, 3 * static_cast<int64_t>(runs.size()));
  EXPECT_THAT(Log(), IsEmpty());
}

TEST_P(IndexTest, NeverReturnsWhatIsEvictedOrTruncated) {
  options_.pinned_tokens = 7;
  Create();
  Fill(1500);
  Results();
  for (const int64_t keep : {1300, 600, 90, 20, 7}) {
    SCOPED_TRACE(absl::StrCat("keep ", keep));
    ASSERT_OK(memory_->Evict(keep));
    oracle_->Evict(keep);
    Results();  // with fewer rows than are wanted, too: the exact scan steps in
  }
  Fill(600);
  Results();
  for (const int64_t tokens : {1900, 1700, 1000}) {
    SCOPED_TRACE(absl::StrCat("truncated to ", tokens));
    ASSERT_OK(memory_->Truncate(tokens));
    oracle_->Truncate(tokens);
    Results();
    // New rows get the old token indices.
    AppendTokens(*memory_, oracle_.get(), 1000, tokens, 300);
    ASSERT_OK(memory_->Commit(Durability::kBuffered, nullptr));
    Results();
    Reopen();
    Results();
  }
  EXPECT_EQ(Stats().indexes_rebuilt, 0);
}

// Blobs that no manifest names are deleted at once, not at the next open.
TEST_P(IndexTest, UnnamedBlobsAreDeletedAtOnce) {
  Create();
  Fill(1800, 600);
  Reopen();
  {
    // A search that began before the eviction misses the blobs and builds the indices that it needs.
    const Snapshot snapshot = memory_->TakeSnapshot();
    const Oracle before = *oracle_;
    ASSERT_OK(memory_->Evict(200));
    oracle_->Evict(200);
    AttendCase made;
    made.layer = card_.layers[0];
    made.sequences = {{memory_.get(), &before, &snapshot, 2, 3, 0, -1}};
    made.SetTopK(5);
    made.approximate = true;
    AttendCall call(random_, made);
    call.RunAndCheck();
    EXPECT_GT(Stats().indexes_rebuilt, 0);
  }
  // Builds that are cancelled after some heads.
  Fill(600, 600);
  ASSERT_OK(memory_->Truncate(1900));
  oracle_->Truncate(1900);
  AppendTokens(*memory_, oracle_.get(), kOwner, 1900, 700);
  int calls = 0;
  EXPECT_TRUE(absl::IsCancelled(memory_->Maintain([&](int64_t, int64_t) { return ++calls < 3; })));
  EXPECT_EQ(calls, 3);
  ExpectHolds(*memory_, *oracle_);
  Reopen();
  EXPECT_EQ(Stats().database.orphans_collected, 0u);
}

TEST_P(IndexTest, AForkSharesTheIndices) {
  Create();
  Fill(1500);
  auto fork = store_->ForkMemory(memory_, 1100, "fork");
  ASSERT_OK(fork.status());
  EXPECT_EQ((*fork)->Info().indexes, 1);
  const int64_t built = Stats().indexes_built;
  ASSERT_OK(store_->CloseMemory(memory_));
  ASSERT_OK(store_->DropMemory("m"));
  memory_ = *fork;
  oracle_->Truncate(1100);
  Results();
  EXPECT_EQ(Stats().indexes_built, built);
  EXPECT_EQ(Stats().indexes_rebuilt, 0);
}

// Forty tokens only, so that all are candidates, or may be: the result equals the exact scan's, bit for bit.
TEST_P(IndexTest, EqualKeysAreRankedAsByTheExactScan) {
  if (options_.index_spec == "centroid") options_.index_spec = "centroid,max_miss=0";
  options_.pinned_tokens = 7;
  Create();
  MemoryOptions scan_options = options_;
  scan_options.index_spec = "scan";
  const std::shared_ptr<Memory> scanned = *store_->CreateMemory("scanned", card_, scan_options);
  TestRandom random(5);
  const auto fill = [&](int64_t tokens) {
    for (int64_t end = oracle_->Whole() + tokens; oracle_->Whole() < end;) {
      const int64_t token = oracle_->Whole();
      const int64_t key = token % 97 == 50 ? 0 : 1 + (token * token / 7) % 39;
      for (size_t layer = 0; layer < card_.layers.size(); ++layer) {
        const LayerCard& of = card_.layers[layer];
        const Rows keys = KeysOf(kOwner, of, key, 1), values = ValuesOf(kOwner, of, token, 1);
        oracle_->Append(layer, keys.tensor, values.tensor, nullptr, nullptr);
        for (Memory* memory : {memory_.get(), scanned.get()}) {
          ASSERT_OK(memory->Append(of.layer, keys.tensor, values.tensor, nullptr, nullptr));
        }
      }
    }
    ASSERT_OK(memory_->Commit(Durability::kBuffered, nullptr));
    ASSERT_OK(scanned->Commit(Durability::kBuffered, nullptr));
  };
  const auto compare = [&](const Oracle& oracle, const Snapshot* snapshot, const Snapshot* of_scanned) {
    for (const size_t layer : {size_t{0}, size_t{1}}) {
      for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
               {0, -1}, {3, 1000}, {300, 1000}, {511, -1}, {900, 1030}, {1025, 1750}}) {
        for (const int64_t k : {1, 10, 90}) {
          SCOPED_TRACE(absl::StrCat("layer ", layer, ", tokens ", begin, " to ", end, ", k ", k));
          AttendCase made = MixedHeads(card_, layer, 3, PositionPolicy::kAsStored);
          made.sequences = {{memory_.get(), &oracle, snapshot, 3, 2, begin, end}};
          for (HeadRule& head : made.heads) head.top_k = head.top_k > 0 ? k : 0;
          AttendCall call(random, made);
          ASSERT_OK(call.Run());
          const AttendResult result = call.result();
          call.SetMemory(0, scanned.get(), of_scanned);
          ASSERT_OK(call.Run());
          EXPECT_EQ(result.tokens, call.result().tokens);
          EXPECT_TRUE(result == call.result());
        }
      }
    }
  };
  fill(1800);
  EXPECT_GT(Stats().indexes_built, 0);
  compare(*oracle_, nullptr, nullptr);
  const Oracle before = *oracle_;
  const Snapshot snapshot = memory_->TakeSnapshot(), of_scanned = scanned->TakeSnapshot();
  for (const int64_t keep : {1500, 1000}) {
    SCOPED_TRACE(absl::StrCat("evicted to ", keep));
    ASSERT_OK(memory_->Evict(keep));
    ASSERT_OK(scanned->Evict(keep));
    oracle_->Evict(keep);
    compare(*oracle_, nullptr, nullptr);
    compare(before, &snapshot, &of_scanned);
  }
  fill(700);
  compare(*oracle_, nullptr, nullptr);
  EXPECT_EQ(Stats().indexes_rebuilt, 0);
  VerifyReport report;
  ASSERT_OK(store_->Verify(nullptr, &report));
  EXPECT_EQ(report.damaged_indexes, 0);
}

INSTANTIATE_TEST_SUITE_P(Kinds, IndexTest, ::testing::Values("flat", "ivf", "ivfpq", "hnsw", "centroid"),
                         [](const auto& info) { return std::string(info.param); });

class OneIndexTest : public IndexTest {};

TEST_P(OneIndexTest, AKindThatCannotBeBuiltLeavesTheExactScan) {
  Create();
  Fill(900);
  EXPECT_EQ(memory_->Info().indexes, 0);
  ASSERT_FALSE(Log().empty());
  EXPECT_THAT(Log()[0], HasSubstr("lists need as many rows"));
  const size_t lines = Log().size();
  ASSERT_OK(memory_->Maintain(nullptr));
  EXPECT_EQ(Log().size(), lines);  // said once
  AttendCase made;
  made.layer = card_.layers[0];
  made.sequences = {{memory_.get(), oracle_.get(), nullptr, 3, 3, 0, -1}};
  made.SetTopK(12);
  AttendCall(random_, made).RunAndCheck();
}
// The log's callback holds the thread in the build of the first range until the store is being closed.
TEST_P(OneIndexTest, AStoreThatIsClosedDuringABuildSaysSo) {
  Create();
  Reopen(/*background=*/true);
  hold_build_ = true;
  Fill(256);
  build_began_.WaitForNotification();
  Close();
  const std::vector<std::string> log = Log();
  EXPECT_THAT(log, ::testing::Contains(HasSubstr("indices: the store was closed during the build")));
  EXPECT_THAT(log, ::testing::Not(::testing::Contains(HasSubstr("progress callback"))));
}

INSTANTIATE_TEST_SUITE_P(Unbuildable, OneIndexTest, ::testing::Values("faiss:IVF5000,Flat"));

class BackgroundIndexTest : public IndexTest {};

// A build that is still running when its memory is closed must not write the old manifest over what came after.
TEST_P(BackgroundIndexTest, AClosedMemoryStaysAsItWas) {
  store_.reset();
  Open(true);
  for (int round = 0; round < 6; ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    Create();
    AppendTokens(*memory_, oracle_.get(), kOwner, 0, 2000);
    ASSERT_OK(memory_->Commit(Durability::kBuffered, nullptr));
    if (round % 2 == 0) absl::SleepFor(absl::Milliseconds(3 * round));
    ASSERT_OK(store_->CloseMemory(memory_));
    memory_ = *store_->OpenMemory("m", nullptr);
    AppendTokens(*memory_, oracle_.get(), kOwner, 2000, 500);
    ASSERT_OK(memory_->Commit(Durability::kBuffered, nullptr));
    ASSERT_OK(store_->CloseMemory(memory_));
    EXPECT_TRUE(absl::IsFailedPrecondition(memory_->Commit(Durability::kBuffered, nullptr)));
    memory_ = *store_->OpenMemory("m", nullptr);
    ExpectHolds(*memory_, *oracle_);
    ASSERT_OK(store_->CloseMemory(memory_));
    ASSERT_OK(store_->DropMemory("m"));
    absl::SleepFor(absl::Milliseconds(30));
    EXPECT_TRUE(absl::IsNotFound(store_->OpenMemory("m", nullptr).status()));
  }
}
INSTANTIATE_TEST_SUITE_P(Background, BackgroundIndexTest, ::testing::Values("hnsw"));

}  // namespace
}  // namespace mneme
