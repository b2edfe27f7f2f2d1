// SPDX-License-Identifier: Apache-2.0
// mneme_attend allocates nothing once calls of the same kind have run: every operator new on its threads is counted.

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "tests/capi/steady/allocations.h"
#include "tests/capi/testing.h"

namespace mneme {
namespace {

// A host's parallel-for whose threads stay: task i always runs on the same of them, so that what one has seen it will
// see again. Thread 0 is the caller.
class Team {
 public:
  static constexpr size_t kThreads = 3;

  Team() {
    for (size_t t = 1; t < kThreads; ++t) threads_.emplace_back([this, t] { Work(t); });
  }
  ~Team() {
    Post(nullptr, 0, nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

  static void Run(void* team, size_t n, void (*task)(void*, size_t), void* task_context) {
    static_cast<Team*>(team)->Post(task, n, task_context);
  }

 private:
  void Post(void (*task)(void*, size_t), size_t n, void* context) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      n_ = n;
      context_ = context;
      working_ = threads_.size();
      ++posted_;
    }
    changed_.notify_all();
    for (size_t i = 0; i < n; i += kThreads) task(context, i);
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return working_ == 0; });
  }

  void Work(size_t number) {
    CountThisThread();
    for (size_t seen = 0;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return posted_ > seen; });
      seen = posted_;
      const auto task = task_;
      const size_t n = n_;
      void* const context = context_;
      lock.unlock();
      for (size_t i = number; i < n; i += kThreads) task(context, i);
      lock.lock();
      --working_;
      changed_.notify_all();
      if (task == nullptr) return;
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  void (*task_)(void*, size_t) = nullptr;
  size_t n_ = 0;
  void* context_ = nullptr;
  size_t posted_ = 0;
  size_t working_ = 0;
  std::vector<std::thread> threads_;
};

struct Case {
  const char* name;
  int64_t q_heads = 8;
  int64_t kv_heads = 2;
  int64_t dim = 64;
  float soft_cap = 0;
  int32_t stored = MNEME_DTYPE_F16;
  int64_t tokens = 2500;  // in segments of 1024, the rest in the tail
  int64_t pinned = 0;
  int32_t policy = MNEME_POSITION_AS_STORED;
  int32_t fusion = MNEME_FUSION_JOINT;
  int64_t k = 32;
  float decay = 0;
  float bias = 0;
  int64_t batch = 1;
  int64_t queries = 1;  // of each sequence
  int64_t locals = 0;   // the same
  bool reports = false;
  bool snapshots = false;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

constexpr Case kCases[] = {
    {.name = "decode"},
    {.name = "one row", .tokens = 1},
    {.name = "without codes", .tokens = 300},
    {.name = "one head a group", .q_heads = 2, .kv_heads = 2},
    {.name = "eight heads a group, k 8", .q_heads = 16, .k = 8},
    {.name = "k 64, three heads a group", .q_heads = 6, .k = 64},
    {.name = "more wanted than there is", .tokens = 100, .k = 5000},
    {.name = "f32 rows", .stored = MNEME_DTYPE_F32},
    {.name = "i8 rows of 128 dims", .dim = 128, .stored = MNEME_DTYPE_I8},
    {.name = "wide heads", .dim = 320, .locals = 20},
    {.name = "decay, bias and pinned rows", .pinned = 16, .decay = 0.5f, .bias = 0.25f},
    {.name = "soft cap", .soft_cap = 5},
    {.name = "gated, with local rows", .fusion = MNEME_FUSION_GATED, .locals = 200},
    {.name = "joint, with local rows", .locals = 500},
    {.name = "memory alone", .fusion = MNEME_FUSION_MEMORY_ONLY, .locals = 64},
    {.name = "everything reported", .locals = 64, .reports = true},
    {.name = "fixed distance", .policy = MNEME_POSITION_FIXED_DISTANCE},
    {.name = "window start", .policy = MNEME_POSITION_WINDOW_START},
    {.name = "clamped", .tokens = 1500, .policy = MNEME_POSITION_CLAMPED, .k = 8},
    {.name = "batch of three", .batch = 3, .locals = 50, .reports = true},
    {.name = "snapshots", .batch = 3, .snapshots = true},
    {.name = "prefill", .queries = 64, .locals = 64},
    {.name = "prefill of a batch, decaying", .decay = 0.5f, .batch = 2, .queries = 40, .reports = true},
};

// A store with memories "0", "1", … of one layer, one a sequence of the case, and a call that attends to them.
class SteadyCall {
 public:
  SteadyCall(const Case& c, const mneme_store_options& options) : case_(c) {
    EXPECT_OK(mneme_store_open(folder_.store().c_str(), &options, &store_));
    EXPECT_OK(mneme_card_create("model", "sha256:0", &card_));
    std::vector<float> frequencies(static_cast<size_t>(c.dim / 2));
    for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] = 1.0f / static_cast<float>(1 + i);
    mneme_layer_desc layer = MNEME_LAYER_DESC_INIT;
    layer.layer = kLayer;
    layer.q_heads = static_cast<int32_t>(c.q_heads);
    layer.kv_heads = static_cast<int32_t>(c.kv_heads);
    layer.key_dim = layer.value_dim = static_cast<int32_t>(c.dim);
    layer.scale = 1;
    layer.soft_cap = c.soft_cap;
    layer.rotary_layout = MNEME_ROTARY_HALVES;
    layer.rotary_pairs = static_cast<int32_t>(c.dim / 2);
    layer.rotary_inverse_frequencies = frequencies.data();
    EXPECT_OK(mneme_card_add_layer(card_, &layer));
    mneme_memory_options made = MNEME_MEMORY_OPTIONS_INIT;
    made.stored_dtype = c.stored;
    made.pinned_tokens = c.pinned;
    made.segment_tokens = 1024;
    for (int64_t i = 0; i < c.batch; ++i) {
      memories_.push_back(nullptr);
      EXPECT_OK(mneme_memory_create(store_, std::to_string(i).c_str(), card_, &made, &memories_.back()));
      for (int64_t token = 0; token < c.tokens; token += 1024) {
        Append(static_cast<size_t>(i), std::min<int64_t>(1024, c.tokens - token), static_cast<uint32_t>(token + i));
        EXPECT_OK(mneme_memory_commit(memories_.back(), MNEME_DURABILITY_BUFFERED, nullptr));
      }
      if (c.snapshots) {
        mneme_snapshot* snapshot = nullptr;
        EXPECT_OK(mneme_snapshot_create(memories_.back(), &snapshot));
        snapshots_.push_back(snapshot);
      }
      query_offsets_.push_back((i + 1) * c.queries);
      local_offsets_.push_back((i + 1) * c.locals);
    }
    for (uint32_t i = 0; i < kQuerySets; ++i) {
      queries_.push_back(std::make_unique<Tensor>(std::vector<int64_t>{c.batch * c.queries, c.q_heads, c.dim}));
      queries_.back()->Fill(100 + i);
    }
    local_keys_.Fill(1);
    local_values_.Fill(2);
    args_.layer = kLayer;
    args_.query_offsets = query_offsets_.data();
    if (c.locals > 0) {
      args_.local_keys = &local_keys_.view;
      args_.local_values = &local_values_.view;
      args_.local_offsets = local_offsets_.data();
    }
    if (c.snapshots) args_.snapshots = snapshots_.data();
    args_.position_policy = c.policy;
    args_.query_local_positions = local_positions_.data();
    args_.fusion = c.fusion;
    args_.default_top_k = c.k;
    args_.default_distance = 100;
    args_.decay = decay_.data();
    args_.memory_bias = bias_.data();
    args_.decay_beyond = 100;
    args_.output = &output_.view;
    if (c.reports) {
      args_.log_sum_exp = log_sum_exp_.data();
      args_.memory_mass = mass_.data();
      args_.retrieved_tokens = tokens_.data();
      args_.retrieved_scores = scores_.data();
      args_.retrieved_stride = c.k;
      args_.statuses = statuses_.data();
    }
  }
  ~SteadyCall() {
    for (const mneme_snapshot* snapshot : snapshots_) mneme_snapshot_release(const_cast<mneme_snapshot*>(snapshot));
    for (mneme_memory* memory : memories_) EXPECT_OK(mneme_memory_close(memory));
    mneme_card_release(card_);
    EXPECT_OK(mneme_store_close(store_));
  }
  SteadyCall(const SteadyCall&) = delete;
  SteadyCall& operator=(const SteadyCall&) = delete;

  static constexpr size_t kQuerySets = 4;

  // Attends with one set of queries after another, all of them `rounds` times; what that allocated.
  int64_t Run(int rounds, int64_t (*allocations)() = &Allocations) {
    CountThisThread();
    const int64_t before = allocations();
    for (int round = 0; round < rounds; ++round) {
      for (size_t i = 0; i < kQuerySets; ++i) RunOne(i);
    }
    return allocations() - before;
  }
  void RunOne(size_t query_set) {
    args_.query = &queries_[query_set]->view;
    ASSERT_OK(mneme_attend(memories_.data(), memories_.size(), &args_));
  }

  void Append(size_t sequence, int64_t tokens, uint32_t seed) {
    ASSERT_OK(AppendTokens(memories_[sequence], kLayer, tokens, case_.kv_heads, case_.dim, case_.dim, seed));
  }

  mneme_store* store() { return store_; }
  mneme_card* card() { return card_; }
  const std::vector<float>& output() const { return output_.data; }

 private:
  size_t pairs() const { return static_cast<size_t>(case_.batch * case_.queries * case_.q_heads); }

  const Case case_;
  const TempFolder folder_;
  mneme_store* store_ = nullptr;
  mneme_card* card_ = nullptr;
  std::vector<mneme_memory*> memories_;
  std::vector<const mneme_snapshot*> snapshots_;
  std::vector<std::unique_ptr<Tensor>> queries_;
  std::vector<int64_t> query_offsets_{0}, local_offsets_{0};
  std::vector<int64_t> local_positions_ = std::vector<int64_t>(pairs(), 7);
  Tensor local_keys_{{case_.batch * case_.locals, case_.kv_heads, case_.dim}};
  Tensor local_values_{{case_.batch * case_.locals, case_.kv_heads, case_.dim}};
  Tensor output_{{case_.batch * case_.queries, case_.q_heads, case_.dim}};
  std::vector<float> decay_ = std::vector<float>(static_cast<size_t>(case_.q_heads), case_.decay);
  std::vector<float> bias_ = std::vector<float>(static_cast<size_t>(case_.q_heads), case_.bias);
  std::vector<float> log_sum_exp_ = std::vector<float>(pairs()), mass_ = log_sum_exp_;
  std::vector<int64_t> tokens_ = std::vector<int64_t>(pairs() * static_cast<size_t>(case_.k));
  std::vector<float> scores_ = std::vector<float>(tokens_.size());
  std::vector<int32_t> statuses_ = std::vector<int32_t>(static_cast<size_t>(case_.batch));
  mneme_attend_args args_ = MNEME_ATTEND_ARGS_INIT;
};

// Once round the queries nothing is known of the last; after that each finds what it found the round before. Scratch
// memory that came in pieces comes in one the next time.
constexpr int kWarmUp = 4;
constexpr int kRounds = 8;

TEST(AllocationsTest, AreThoseOfTheLibraryAndOfAllThreads) {
  CountThisThread();
  int64_t before = Allocations();
  mneme_card* card = nullptr;
  ASSERT_OK(mneme_card_create("a name too long to be kept inside of a string", "sha256:0", &card));
  EXPECT_GE(Allocations() - before, 2);
  mneme_card_release(card);
  before = Allocations();
  std::thread([] {
    CountThisThread();
    char* volatile chars = new char[100];
    delete[] chars;
  }).join();
  EXPECT_GE(Allocations() - before, 2);  // the thread's state, and the chars
  const int64_t all_before = AllAllocations();
  before = Allocations();
  std::thread([] {
    char* volatile chars = new char[100];
    delete[] chars;
  }).join();
  EXPECT_GT(AllAllocations() - all_before, Allocations() - before);
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  SteadyCall call({.name = "first"}, options);
  EXPECT_GT(call.Run(1), 0);
}

class SteadyTest : public ::testing::TestWithParam<Case> {};

TEST_P(SteadyTest, AloneAllocatesNothing) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.threads = 1;
  SteadyCall call(GetParam(), options);
  call.Run(kWarmUp);
  EXPECT_EQ(call.Run(kRounds), 0);
}

TEST_P(SteadyTest, OnTheHostsThreadsAllocatesNothing) {
  Team team;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.parallel_for = &Team::Run;
  options.parallel_for_context = &team;
  options.parallel_for_width = Team::kThreads;
  SteadyCall call(GetParam(), options);
  call.Run(kWarmUp);
  EXPECT_EQ(call.Run(kRounds), 0);
}

INSTANTIATE_TEST_SUITE_P(Calls, SteadyTest, ::testing::ValuesIn(kCases), [](const auto& info) {
  std::string name = info.param.name;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == ' ' || c == ','; }, '_');
  return name;
});

// Which of the store's own threads takes a task is chance, so it is chance when the last of them has seen the greatest:
// they come to allocate nothing.
TEST(SteadyPoolTest, OnTheStoresThreadsComesToAllocateNothing) {
  for (const Case& c : {Case{.name = "decode", .locals = 64}, Case{.name = "prefill", .queries = 64, .locals = 64}}) {
    SCOPED_TRACE(c.name);
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.threads = 3;
    SteadyCall call(c, options);
    call.Run(kWarmUp);
    int64_t allocations = 1;
    for (int attempt = 0; attempt < 40 && allocations > 0; ++attempt) {
      allocations = call.Run(kRounds, &AllAllocations);  // the store's threads do not say what they run
    }
    EXPECT_EQ(allocations, 0);
  }
}

TEST(SteadyThreadsTest, CallsAtOnceAllocateNothing) {
  constexpr int kThreads = 3;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.threads = 1;
  // Few enough rows that nobody is told what another thread's query found last.
  std::vector<std::unique_ptr<SteadyCall>> calls;
  for (int t = 0; t < kThreads; ++t) {
    calls.push_back(std::make_unique<SteadyCall>(Case{.name = "decode", .tokens = 900, .locals = 64}, options));
  }
  std::mutex mutex;
  std::condition_variable changed;
  int warm = 0, done = 0;
  bool go = false, leave = false;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      calls[static_cast<size_t>(t)]->Run(kWarmUp);
      std::unique_lock<std::mutex> lock(mutex);
      ++warm;
      changed.notify_all();
      changed.wait(lock, [&] { return go; });
      lock.unlock();
      calls[static_cast<size_t>(t)]->Run(10 * kRounds);
      lock.lock();
      ++done;
      changed.notify_all();
      changed.wait(lock, [&] { return leave; });
    });
  }
  int64_t allocations;
  {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return warm == kThreads; });
    const int64_t before = Allocations();
    go = true;
    changed.notify_all();
    changed.wait(lock, [&] { return done == kThreads; });
    allocations = Allocations() - before;
    leave = true;
    changed.notify_all();
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(allocations, 0);
}

// Two kinds of calls in turn, on the same threads: what one needs does not cost the other what it has.
TEST(SteadyTurnsTest, DecodeAndPrefillInTurnAllocateNothing) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.threads = 1;
  SteadyCall decode({.name = "decode", .locals = 64}, options);
  SteadyCall prefill({.name = "prefill", .queries = 64, .locals = 64}, options);
  const auto run = [&] { return decode.Run(1) + prefill.Run(1); };
  for (int i = 0; i < kWarmUp; ++i) run();
  for (int i = 0; i < kRounds; ++i) EXPECT_EQ(run(), 0);
}

// Rows that come between the calls have to lie somewhere: no more than that is claimed, but it is printed.
TEST(SteadyGrowthTest, RowsAppendedBetweenCallsAllocateNowAndThen) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.threads = 1;
  SteadyCall call({.name = "decode"}, options);
  call.Run(kWarmUp);
  constexpr uint32_t kSteps = 256;
  int64_t in_attend = 0;
  int steps_that_allocated = 0;
  for (uint32_t step = 0; step < kSteps; ++step) {
    call.Append(0, 1, step);
    const int64_t before = Allocations();
    call.RunOne(step % SteadyCall::kQuerySets);
    in_attend += Allocations() - before;
    steps_that_allocated += Allocations() > before ? 1 : 0;
  }
  std::printf("%u steps of one token each: %lld allocations of mneme_attend, in %d of them\n", kSteps,
              static_cast<long long>(in_attend), steps_that_allocated);
  RecordProperty("allocations", static_cast<int>(in_attend));
}

// A host's parallel-for that calls the engine itself, on the thread that it is to run tasks on.
struct Nesting {
  SteadyCall* inner = nullptr;
  bool inside = false;

  static void Run(void* context, size_t n, void (*task)(void*, size_t), void* task_context) {
    auto& self = *static_cast<Nesting*>(context);
    for (size_t i = 0; i < n; ++i) {
      if (self.inner != nullptr && !self.inside) {
        self.inside = true;
        self.inner->RunOne(i % SteadyCall::kQuerySets);
        self.inside = false;
      }
      task(task_context, i);
    }
  }
};

TEST(SteadyNestedTest, CallsWithinCallsDisturbNothing) {
  Nesting nesting;
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.parallel_for = &Nesting::Run;
  options.parallel_for_context = &nesting;
  options.parallel_for_width = 4;
  for (const int64_t queries : {1, 64}) {
    SteadyCall outer({.name = "outer", .queries = queries, .locals = 64}, options);
    SteadyCall inner({.name = "inner", .dim = 32, .tokens = 1200, .batch = 2, .queries = 3, .locals = 9}, options);
    outer.RunOne(1);
    const std::vector<float> expected = outer.output();
    nesting.inner = &inner;
    for (int i = 0; i < 3; ++i) {
      outer.RunOne(1);
      EXPECT_EQ(outer.output(), expected);
    }
    outer.Run(kWarmUp);
    EXPECT_EQ(outer.Run(kRounds), 0);
    nesting.inner = nullptr;
  }
}

}  // namespace
}  // namespace mneme
