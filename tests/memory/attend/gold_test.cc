// SPDX-License-Identifier: Apache-2.0
// Identities that hold exactly or within rounding for every division of a memory into segments.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/reference.h"
#include "attention/state.h"
#include "tests/memory/attend_call.h"

namespace mneme {
namespace {

constexpr uint64_t kOwner = 11;

class GoldTest : public ::testing::Test {
 protected:
  GoldTest() : random_(20240607) {}

  std::shared_ptr<Memory> Create(const std::string& name, const MemoryOptions& options = {}) {
    auto memory = store_->CreateMemory(name, card_, options);
    if (!memory.ok()) {
      ADD_FAILURE() << memory.status();
      std::abort();
    }
    return *memory;
  }
  std::shared_ptr<Memory> Fork(const std::shared_ptr<Memory>& memory, int64_t at, const std::string& name) {
    auto fork = store_->ForkMemory(memory, at, name);
    if (!fork.ok()) {
      ADD_FAILURE() << fork.status();
      std::abort();
    }
    return *fork;
  }
  void Reopen(std::vector<std::shared_ptr<Memory>*> memories, const StoreOptions& options = {}) {
    std::vector<std::string> names;
    for (auto* memory : memories) {
      names.push_back((*memory)->name());
      ASSERT_OK(store_->CloseMemory(*memory));
      memory->reset();
    }
    ASSERT_OK(store_->Close());
    store_.reset();
    store_ = OpenStore(folder_.store(), options);
    for (size_t i = 0; i < memories.size(); ++i) {
      auto memory = store_->OpenMemory(names[i], &card_);
      ASSERT_OK(memory.status());
      *memories[i] = *memory;
    }
  }

  static AttendCase CaseOf(size_t layer, Memory* memory, const Oracle* oracle, int64_t queries, int64_t locals) {
    AttendCase made;
    made.layer = UnequalCard().layers[layer];
    made.sequences = {{memory, oracle, nullptr, queries, locals, 0, -1}};
    return made;
  }

  // Calls that take every branch of a scan and of attention.
  std::vector<AttendCase> ManyCases(Memory* memory, const Oracle* oracle) {
    std::vector<AttendCase> cases;
    for (size_t layer = 0; layer < 2; ++layer) {
      for (const PositionPolicy policy : {PositionPolicy::kAsStored, PositionPolicy::kFixedDistance,
                                          PositionPolicy::kWindowStart, PositionPolicy::kClamped}) {
        AttendCase made = CaseOf(layer, memory, oracle, policy == PositionPolicy::kAsStored ? 70 : 3, 5);
        made.policy = policy;
        made.SetTopK(policy == PositionPolicy::kFixedDistance ? 3000 : 17);
        made.decay_beyond = 64;
        for (size_t head = 0; head < made.heads.size(); ++head) {
          made.heads[head].distance = 90.5f * static_cast<float>(head);
          made.heads[head].decay = head % 2 == 0 ? 0.25f : 0.0f;
          made.heads[head].memory_bias = 0.5f * static_cast<float>(head);
          if (policy != PositionPolicy::kFixedDistance) made.heads[head].top_k += static_cast<int64_t>(head);
        }
        made.heads[0].top_k = 1;
        cases.push_back(made);
      }
    }
    return cases;
  }
  // Returns: their results. Every call of this function uses the same queries.
  std::vector<AttendResult> Results(Memory* memory, Executor& executor, const Snapshot* snapshot = nullptr) {
    TestRandom random(random_.seed() + 5);
    std::vector<AttendResult> results;
    for (const AttendCase& made : ManyCases(memory, nullptr)) {
      AttendCall call(random, made);
      call.SetMemory(0, memory, snapshot);
      EXPECT_OK(call.Run(executor));
      results.push_back(call.result());
    }
    return results;
  }

  TestRandom random_;
  ModelCard card_ = UnequalCard();
  TempFolder folder_;
  std::unique_ptr<Store> store_ = OpenStore(folder_.store());
};

// One softmax over all memory rows and the visible local ones, in double.
void ExpectDense(const AttendCall& call, const Oracle& oracle, const LayerCard& layer, int64_t memory_end,
                 int64_t queries, int64_t locals) {
  const auto at = static_cast<size_t>(oracle.card().FindLayer(layer.layer));
  for (int64_t query = 0; query < queries; ++query) {
    for (int64_t head = 0; head < layer.query_heads; ++head) {
      const auto kv_head = static_cast<size_t>(head / layer.group());
      std::vector<double> logits;
      std::vector<std::vector<double>> values;
      const std::vector<double> vector = call.Query(query, head);
      const auto add = [&](const std::vector<double>& key, const std::vector<double>& value) {
        logits.push_back(static_cast<double>(layer.scale) * reference::Dot(vector, key));
        values.push_back(value);
      };
      for (int64_t token = 0; token < memory_end; ++token) {
        add(oracle.At(at, token).keys[kv_head], oracle.At(at, token).values[kv_head]);
      }
      for (int64_t row = 0; row <= locals - queries + query; ++row) {
        add(call.LocalKey(row, static_cast<int64_t>(kv_head)), call.LocalValue(row, static_cast<int64_t>(kv_head)));
      }
      const reference::State dense = reference::Softmax(logits, values, layer.value_dim, [](int64_t) { return true; });
      const int64_t slot = query * layer.query_heads + head;
      ASSERT_NEAR(static_cast<double>(call.result().log_sum_exp[static_cast<size_t>(slot)]), dense.log_sum_exp, 1e-4);
      for (int64_t i = 0; i < layer.value_dim; ++i) {
        ASSERT_NEAR(static_cast<double>(call.result().output[static_cast<size_t>(slot * layer.value_dim + i)]),
                    dense.output[static_cast<size_t>(i)], 1e-4);
      }
    }
  }
}

// With top_k >= N, joint fusion must equal dense attention.
TEST_F(GoldTest, JointOverAllRowsIsDenseAttention) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    SCOPED_TRACE(std::string(DTypeName(dtype)));
    MemoryOptions options;
    options.stored_dtype = dtype;
    options.segment_tokens = 256;
    const auto memory = Create(std::string(DTypeName(dtype)), options);
    Oracle oracle(card_, options);
    for (int64_t token = 0; token < 700; token += 100) {
      AppendTokens(*memory, &oracle, kOwner, token, 100);
      if (token % 200 == 0) ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
    }
    EXPECT_GT(memory->Info().segments, 0);
    for (size_t layer = 0; layer < 2; ++layer) {
      for (const int64_t locals : {0, 9}) {
        AttendCase made = CaseOf(layer, memory.get(), &oracle, 4, locals);
        made.SetTopK(700);
        AttendCall call(random_, made);
        call.request().retrieve.memory_query = call.request().query;
        ASSERT_OK(call.Run());
        ExpectDense(call, oracle, made.layer, 700, 4, locals);
      }
    }
    ExpectHolds(*memory, oracle);
  }
}

// A host that has appended its local rows gives memory_end, so that no row counts twice.
TEST_F(GoldTest, AppendFirstAttendAfter) {
  MemoryOptions options;
  options.stored_dtype = DType::kF32;
  options.segment_tokens = 256;
  const auto memory = Create("m", options);
  Oracle oracle(card_, options);
  AppendTokens(*memory, &oracle, kOwner, 0, 290);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  for (size_t layer = 0; layer < 2; ++layer) {
    AttendCase made = CaseOf(layer, memory.get(), &oracle, 12, 12);
    made.SetTopK(5000);
    made.sequences[0].memory_end = memory->Info().next_token;
    AttendCall call(random_, made);
    call.request().retrieve.memory_query = call.request().query;
    ASSERT_OK(
        memory->Append(made.layer.layer, call.request().local_keys, call.request().local_values, nullptr, nullptr));
    oracle.Append(layer, call.request().local_keys, call.request().local_values, nullptr, nullptr);
    ASSERT_OK(call.Run());
    ExpectDense(call, oracle, made.layer, 290, 12, 12);
    // The last query sees the same rows from the memory alone.
    AttendCase last = CaseOf(layer, memory.get(), &oracle, 1, 0);
    last.SetTopK(5000);
    AttendCall from_memory(random_, last);
    from_memory.request().retrieve.memory_query = call.request().query;
    from_memory.request().retrieve.memory_query.rows = 1;
    from_memory.request().retrieve.memory_query.data = call.request().query.Row(11, 0);
    ASSERT_OK(from_memory.Run());
    const size_t slots = static_cast<size_t>(made.layer.query_heads);
    for (size_t head = 0; head < slots; ++head) {
      EXPECT_NEAR(from_memory.result().log_sum_exp[head], call.result().log_sum_exp[11 * slots + head], 1e-4f);
    }
  }
}

TEST_F(GoldTest, ShardsMergeToTheWhole) {
  MemoryOptions options;
  options.segment_tokens = 256;
  const auto memory = Create("m", options);
  Oracle oracle(card_, options);
  AppendTokens(*memory, &oracle, kOwner, 0, 900);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  AppendTokens(*memory, &oracle, kOwner, 900, 77);
  for (size_t layer = 0; layer < 2; ++layer) {
    AttendCase made = CaseOf(layer, memory.get(), &oracle, 3, 0);
    made.fusion = Fusion::kMemoryOnly;
    made.SetTopK(977);
    const TestRandom start = random_;
    AttendCall whole(random_, made);
    ASSERT_OK(whole.Run());
    std::vector<float> output(whole.result().output.size(), 0.0f);
    std::vector<float> lse(whole.result().log_sum_exp.size(), kEmptyLogSumExp);
    int64_t begin = 0;
    for (const int64_t end : {0, 1, 300, 512, 900, 905, 977, 2000}) {
      TestRandom again = start;
      made.sequences[0].memory_begin = begin;
      made.sequences[0].memory_end = end;
      AttendCall shard(again, made);
      ASSERT_OK(shard.Run());
      shard.Check();
      for (size_t slot = 0; slot < lse.size(); ++slot) {
        const auto dim = static_cast<size_t>(made.layer.value_dim);
        MergeState(output.data() + slot * dim, &lse[slot], shard.result().output.data() + slot * dim,
                   shard.result().log_sum_exp[slot], made.layer.value_dim);
      }
      begin = end;
    }
    for (size_t i = 0; i < lse.size(); ++i) EXPECT_NEAR(lse[i], whole.result().log_sum_exp[i], 1e-5f);
    for (size_t i = 0; i < output.size(); ++i) EXPECT_NEAR(output[i], whole.result().output[i], 1e-5f);
  }
}

TEST_F(GoldTest, AForkEqualsItsParentAtTheForkPoint) {
  MemoryOptions options;
  options.segment_tokens = 256;
  int number = 0;
  // At 0, inside a sealed segment, between two, in the tail's chunks, in its log, at the committed end, behind it.
  for (const int64_t at : {0, 100, 256, 512, 600, 640, 645}) {
    SCOPED_TRACE(absl::StrCat("at ", at));
    auto parent = Create(absl::StrCat("parent ", number), options);
    Oracle parent_oracle(card_, options);
    for (int64_t token = 0; token < 640; token += 128) {
      AppendTokens(*parent, &parent_oracle, kOwner, token, 128);
      ASSERT_OK(parent->Commit(Durability::kBuffered, nullptr));
    }
    AppendTokens(*parent, &parent_oracle, kOwner, 640, 5);
    auto fork = Fork(parent, at, absl::StrCat("fork ", number));
    Oracle fork_oracle = parent_oracle;
    fork_oracle.Truncate(at);
    const auto copy = Create(absl::StrCat("copy ", number), options);
    if (at > 0) AppendTokens(*copy, nullptr, kOwner, 0, at);
    EXPECT_EQ(Results(fork.get(), InlineExecutor()), Results(copy.get(), InlineExecutor()));
    ASSERT_OK(store_->CloseMemory(copy));

    AppendTokens(*fork, &fork_oracle, 100, at, 300);
    AppendTokens(*parent, &parent_oracle, 200, 645, 300);
    ExpectHolds(*fork, fork_oracle);
    ExpectHolds(*parent, parent_oracle);
    ASSERT_OK(fork->Commit(Durability::kBuffered, nullptr));
    ASSERT_OK(parent->Truncate(333));
    parent_oracle.Truncate(333);
    AppendTokens(*parent, &parent_oracle, 300, 333, 10);
    ASSERT_OK(parent->Commit(Durability::kBuffered, nullptr));
    Reopen({&parent, &fork});
    ExpectHolds(*fork, fork_oracle);
    ExpectHolds(*parent, parent_oracle);
    AttendCase made = CaseOf(0, fork.get(), &fork_oracle, 2, 3);
    made.sequences.push_back({parent.get(), &parent_oracle, nullptr, 2, 0, 0, -1});
    made.SetTopK(20);
    AttendCall(random_, made).RunAndCheck();
    // The fork outlives its parent.
    ASSERT_OK(store_->CloseMemory(parent));
    ASSERT_OK(store_->DropMemory(parent->name()));
    parent.reset();
    ExpectHolds(*fork, fork_oracle);
    Reopen({&fork});
    ExpectHolds(*fork, fork_oracle);
    ASSERT_OK(store_->CloseMemory(fork));
    ++number;
  }
}

TEST_F(GoldTest, AfterEvictionAndAppendsResultsEqualThoseOfANewMemory) {
  for (const int64_t pinned : {0, 5, 300}) {
    SCOPED_TRACE(absl::StrCat("pinned ", pinned));
    MemoryOptions options;
    options.segment_tokens = 256;
    options.pinned_tokens = pinned;
    auto memory = Create(absl::StrCat("m", pinned), options);
    Oracle oracle(card_, options);
    AppendTokens(*memory, &oracle, kOwner, 0, 1000);
    ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
    ASSERT_OK(memory->Evict(400));
    oracle.Evict(400);
    AppendTokens(*memory, &oracle, kOwner, 1000, 100);
    ExpectHolds(*memory, oracle);
    const int64_t first_kept = 1000 - (400 - pinned);
    EXPECT_EQ(memory->Info().first_kept, first_kept);

    const auto fresh = Create(absl::StrCat("fresh", pinned), options);
    if (pinned > 0) AppendTokens(*fresh, nullptr, kOwner, 0, pinned);
    // Rows are equal; their token indices differ.
    AppendTokens(*fresh, nullptr, kOwner, first_kept, 1100 - first_kept);
    for (int reopened = 0; reopened < 2; ++reopened) {
      for (size_t layer = 0; layer < 2; ++layer) {
        AttendCase made = CaseOf(layer, memory.get(), &oracle, 5, 4);
        made.SetTopK(40);
        for (HeadRule& head : made.heads) head.memory_bias = 0.5f;
        AttendCall call(random_, made);
        call.RunAndCheck();
        AttendResult evicted = call.result();
        call.SetMemory(0, fresh.get());
        ASSERT_OK(call.Run());
        for (int64_t& token : evicted.tokens) {
          if (token >= first_kept) token -= first_kept - pinned;
        }
        EXPECT_TRUE(evicted == call.result());
      }
      ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
      // `fresh` is not committed; it stays open.
      ASSERT_OK(store_->CloseMemory(memory));
      memory = *store_->OpenMemory(absl::StrCat("m", pinned), nullptr);
      ExpectHolds(*memory, oracle);
    }
  }
}

// The gate of Memorizing Transformers, against a plain computation.
TEST_F(GoldTest, GatedFusionIsThatOfThePaper) {
  ModelCard card;
  card.model_name = "worked";
  LayerCard layer;
  layer.layer = 8;
  layer.query_heads = layer.kv_heads = 1;
  layer.key_dim = layer.value_dim = 2;
  layer.scale = 2;
  card.layers = {layer};
  MemoryOptions options;
  options.stored_dtype = DType::kF32;
  const auto memory = *store_->CreateMemory("worked", card, options);
  const float root = std::sqrt(0.75f);
  const std::vector<float> keys = {1, 0, 0.5f, root, 0, 1, -1, 0};
  const std::vector<float> values = {1, 0, 0, 1, 2, 2, 5, 5};
  const std::vector<float> local_keys = {1, 0, 0, 1}, local_values = {0, 0, 4, 0}, query = {1, 0};
  const auto tensor = [](const std::vector<float>& data) {
    return RowTensor{data.data(), DType::kF32, static_cast<int64_t>(data.size() / 2), 1, 2, 2, 2};
  };
  ASSERT_OK(memory->Append(8, tensor(keys), tensor(values), nullptr, nullptr));

  const HeadRule head{.top_k = 2, .distance = 0, .memory_bias = 0, .decay = 0, .scale = 2, .gate = 0.5f};
  Sequence sequence;
  sequence.memory = memory.get();
  sequence.query_end = 1;
  sequence.local_end = 2;
  std::vector<float> output(2);
  float mass = 0;
  std::vector<int64_t> tokens(2);
  AttendRequest request(layer);
  request.retrieve.memory_query = tensor(query);
  request.retrieve.use_memory_bias = false;
  request.retrieve.heads = absl::MakeConstSpan(&head, 1);
  request.retrieve.sequences = absl::MakeConstSpan(&sequence, 1);
  request.query = tensor(query);
  request.local_keys = tensor(local_keys);
  request.local_values = tensor(local_values);
  request.mask.kind = LocalMask::Kind::kNone;
  request.fusion = Fusion::kGated;
  request.output = {output.data(), DType::kF32, 1, 1, 2, 2, 2};
  request.retrieved_tokens = tokens.data();
  request.retrieved_stride = 2;
  request.memory_mass = &mass;
  ASSERT_OK(Attend(request, InlineExecutor()));
  EXPECT_NEAR(output[0], 0.635070f, 1e-6f);
  EXPECT_NEAR(output[1], 0.167405f, 1e-6f);
  EXPECT_NEAR(mass, 0.622459f, 1e-6f);
  EXPECT_THAT(tokens, ::testing::ElementsAre(0, 1));

  request.fusion = Fusion::kJoint;
  request.retrieve.use_memory_bias = true;
  ASSERT_OK(Attend(request, InlineExecutor()));
  EXPECT_NEAR(output[0], 0.615745f, 1e-6f);
  EXPECT_NEAR(output[1], 0.146963f, 1e-6f);
}

TEST_F(GoldTest, ResultsDoNotDependOnThreadsOrSegments) {
  constexpr int64_t kTokens = 5000;
  MemoryOptions options;
  std::vector<std::shared_ptr<Memory>> memories;
  for (const int64_t segment_tokens : {256, 512, 4096}) {
    options.segment_tokens = segment_tokens;
    const auto memory = Create(absl::StrCat("m", segment_tokens), options);
    for (int64_t token = 0; token < kTokens;) {
      const int64_t n = std::min(kTokens - token, random_.Between(1, 700));
      AppendTokens(*memory, nullptr, kOwner, token, n);
      token += n;
      if (random_.Chance(0.7)) ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
    }
    memories.push_back(memory);
  }
  options.segment_tokens = 4096;
  memories.push_back(Create("never committed", options));
  AppendTokens(*memories.back(), nullptr, kOwner, 0, kTokens);

  const std::vector<AttendResult> wanted = Results(memories[0].get(), InlineExecutor());
  for (const size_t threads : {1, 2, 5}) {
    const auto executor = MakeThreadPool(threads);
    for (const auto& memory : memories) {
      EXPECT_EQ(Results(memory.get(), *executor), wanted) << memory->name() << ", " << threads << " threads";
    }
  }
  ASSERT_OK(memories[0]->Maintain(nullptr));
  for (const auto& memory : memories) ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  Reopen({&memories[0], &memories[1], &memories[2], &memories[3]});
  for (const auto& memory : memories) {
    EXPECT_EQ(Results(memory.get(), InlineExecutor()), wanted) << memory->name() << ", opened again";
  }
}

TEST_F(GoldTest, ASnapshotDoesNotChange) {
  MemoryOptions options;
  options.segment_tokens = 256;
  options.pinned_tokens = 3;
  auto memory = Create("m", options);
  Oracle oracle(card_, options);
  AppendTokens(*memory, &oracle, kOwner, 0, 700);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  AppendTokens(*memory, &oracle, kOwner, 700, 50);
  // Reopened, so that the snapshot reads rows from disk which the memory has already dropped.
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  Reopen({&memory});
  const Snapshot snapshot = memory->TakeSnapshot();
  const Oracle then = oracle;
  const auto check = [&] {
    for (size_t layer = 0; layer < 2; ++layer) {
      AttendCase made = CaseOf(layer, memory.get(), &then, 3, 2);
      made.sequences[0].snapshot = &snapshot;
      made.SetTopK(33);
      AttendCall(random_, made).RunAndCheck();
    }
  };
  AppendTokens(*memory, &oracle, kOwner, 750, 300);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  AppendTokens(*memory, &oracle, kOwner, 1050, 300);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  ASSERT_OK(memory->Evict(20));
  oracle.Evict(20);
  ExpectHolds(*memory, oracle);
  check();
  ASSERT_OK(memory->Truncate(1));
  AppendTokens(*memory, nullptr, 99, 1, 500);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  check();
  // The snapshot keeps its rows after the memory is dropped.
  ASSERT_OK(store_->CloseMemory(memory));
  ASSERT_OK(store_->DropMemory("m"));
  check();
}

// A snapshot of a reopened tail, which is sealed and dropped before any call has read its rows.
TEST_F(GoldTest, ASnapshotKeepsATailThatNoCallHasRead) {
  MemoryOptions options;
  options.segment_tokens = 512;
  auto memory = Create("m", options);
  Oracle oracle(card_, options);
  AppendTokens(*memory, &oracle, kOwner, 0, 256);
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  Reopen({&memory});
  const Snapshot snapshot = memory->TakeSnapshot();
  auto fork = Fork(memory, 256, "fork");  // seals the tail
  ASSERT_OK(store_->CloseMemory(fork));
  fork.reset();
  ASSERT_OK(store_->DropMemory("fork"));
  ASSERT_OK(memory->Truncate(0));
  ASSERT_OK(memory->Commit(Durability::kBuffered, nullptr));
  AttendCase made = CaseOf(0, memory.get(), &oracle, 3, 2);
  made.sequences[0].snapshot = &snapshot;
  made.SetTopK(33);
  AttendCall(random_, made).RunAndCheck();
}

TEST_F(GoldTest, EmptyMemoriesAndHeadsWithoutMemoryChangeNothing) {
  const auto memory = Create("m");
  const Oracle oracle(card_, {});
  for (const Fusion fusion : {Fusion::kJoint, Fusion::kGated, Fusion::kMemoryOnly, Fusion::kLocalOnly}) {
    AttendCase made = CaseOf(0, memory.get(), &oracle, 2, 3);
    made.sequences.push_back({nullptr, nullptr, nullptr, 1, 2, 0, -1});
    made.sequences.push_back({nullptr, nullptr, nullptr, 1, 0, 0, -1});
    made.sequences.push_back({nullptr, nullptr, nullptr, 0, 1, 0, -1});
    made.fusion = fusion;
    made.SetTopK(4);
    AttendCall(random_, made).RunAndCheck();
  }
}

}  // namespace
}  // namespace mneme
