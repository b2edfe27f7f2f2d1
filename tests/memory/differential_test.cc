// SPDX-License-Identifier: Apache-2.0
// Random sequences of operations against a plain model of what a memory is.

#include <algorithm>

#include "tests/memory/attend_call.h"

namespace mneme {
namespace {

constexpr DType kStored[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8};
constexpr DType kInput[] = {DType::kF32, DType::kF16, DType::kBF16};

// One memory, the oracle of what it must hold, and the oracle of its durable part.
struct Subject {
  std::string name;
  std::shared_ptr<Memory> memory;
  std::unique_ptr<Oracle> live, durable;
  bool own_positions = false;
  struct Held {
    Snapshot snapshot;
    Oracle oracle;
  };
  std::vector<Held> snapshots;
};

class Machine {
 public:
  Machine(TestRandom& random, bool exact) : random_(random), exact_(exact) {
    card_ = UnequalCard();
    if (exact_) {
      // Powers of two and small whole numbers: every logit is exact in f32, and ties are common.
      for (LayerCard& layer : card_.layers) layer.rotary = {};
    } else if (random_.Chance(0.3)) {
      card_.layers[1].soft_cap = 5;
    }
    pool_ = MakeThreadPool(3);
    Open();
  }

  void Run(int steps) {
    Create();
    for (int step = 0; step < steps && !::testing::Test::HasFatalFailure(); ++step) {
      SCOPED_TRACE(absl::StrCat("step ", step));
      Step();
    }
    Reopen();
    for (Subject& subject : subjects_) ExpectHolds(*subject.memory, *subject.live);
  }

 private:
  void Open() {
    StoreOptions options;
    options.executor = pool_.get();
    options.ram_budget_bytes = random_.Chance(0.5) ? 0 : static_cast<size_t>(random_.Between(1, 100000));
    store_ = OpenStore(folder_.store(), options);
  }

  Subject& Any() {
    return subjects_[static_cast<size_t>(random_.Between(0, static_cast<int64_t>(subjects_.size()) - 1))];
  }

  void Create() {
    MemoryOptions options;
    options.stored_dtype = kStored[random_.Between(0, 3)];
    options.normalise_keys = !exact_ && random_.Chance(0.2);
    options.segment_tokens = 256 * random_.Between(1, 3);
    if (exact_) options.stored_dtype = kStored[random_.Between(0, 2)];
    options.pinned_tokens = random_.OneOf<int64_t>({0, 0, 4, 270});
    if (random_.Chance(0.3)) options.max_tokens = options.pinned_tokens + random_.Between(1, 600);
    Subject subject;
    subject.name = absl::StrCat("memory ", next_name_++);
    subject.own_positions = random_.Chance(0.3);
    auto memory = store_->CreateMemory(subject.name, card_, options);
    ASSERT_OK(memory.status());
    subject.memory = *memory;
    subject.live = std::make_unique<Oracle>(card_, options);
    subject.durable = std::make_unique<Oracle>(card_, options);
    subjects_.push_back(std::move(subject));
  }

  void Step() {
    const int64_t dice = random_.Between(0, 99);
    Subject& subject = Any();
    if (dice < 34) {
      Append(subject);
    } else if (dice < 52) {
      Attend();
    } else if (dice < 62) {
      SCOPED_TRACE("commit");
      int64_t durable = -1;
      ASSERT_OK(subject.memory->Commit(random_.Chance(0.2) ? Durability::kSynced : Durability::kBuffered, &durable));
      EXPECT_EQ(durable, subject.live->Whole());
      Committed(subject);
    } else if (dice < 68) {
      Truncate(subject);
    } else if (dice < 73) {
      SCOPED_TRACE("evict");
      const int64_t least = std::min(subject.live->options().pinned_tokens, subject.live->Whole());
      const int64_t keep = least + random_.Between(0, 700);
      ASSERT_OK(subject.memory->Evict(keep));
      subject.live->Evict(keep);
      Committed(subject);
    } else if (dice < 79) {
      Fork(subject);
    } else if (dice < 82) {
      SCOPED_TRACE("maintain");
      ASSERT_OK(subject.memory->Maintain(nullptr));
      Committed(subject);
    } else if (dice < 88) {
      if (subject.snapshots.size() < 3) {
        subject.snapshots.push_back({subject.memory->TakeSnapshot(), *subject.live});
      } else {
        subject.snapshots.erase(subject.snapshots.begin());
      }
    } else if (dice < 91) {
      Reopen();
    } else if (dice < 93) {
      if (subjects_.size() < 3) Create();
    } else if (dice < 95) {
      if (subjects_.size() > 2) Drop(subject);
    } else {
      SCOPED_TRACE("read");
      ExpectHolds(*subject.memory, *subject.live);
    }
  }

  void Committed(Subject& subject) {
    *subject.durable = *subject.live;
    subject.durable->DropPending();
    EXPECT_EQ(subject.memory->Info().tokens_durable, subject.durable->Whole());
  }

  Rows RandomRows(int64_t n, int64_t heads, int64_t dim) {
    const DType dtype = kInput[random_.Between(0, 2)];
    // In exact runs rows repeat, so that ties are common.
    return MakeRows(dtype, n, heads, dim, [&](auto...) {
      return exact_ ? static_cast<float>(random_.Between(-1, 1)) : random_.Normal(1.0f);
    });
  }

  void Append(Subject& subject) {
    SCOPED_TRACE("append");
    const int64_t most = random_.Chance(0.3) ? 400 : 12;
    const int64_t n = random_.Between(1, most);
    // Usually all layers get the same tokens; sometimes one layer is ahead or behind.
    for (size_t i = 0; i < card_.layers.size(); ++i) {
      const size_t layer = subject.live->Whole() % 2 == 0 ? i : card_.layers.size() - 1 - i;
      const LayerCard& shape = card_.layers[layer];
      int64_t rows = n;
      if (random_.Chance(0.15)) rows = random_.Between(0, 40);
      if (random_.Chance(0.3)) {
        // Catches up with the layer that is ahead.
        rows = std::max<int64_t>(0, subject.live->Known() - subject.live->End(layer));
      }
      const Rows keys = RandomRows(rows, shape.kv_heads, shape.key_dim);
      const Rows values = RandomRows(rows, shape.kv_heads, shape.value_dim);
      std::vector<int64_t> positions;
      std::vector<int32_t> token_ids;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t token = subject.live->End(layer) + row;
        positions.push_back(token < subject.live->Known() ? subject.live->Position(token)
                            : subject.own_positions       ? 2 * token + 5
                                                          : token);
        token_ids.push_back(static_cast<int32_t>(random_.Between(0, 50000)));
      }
      const int64_t* given = subject.own_positions || random_.Chance(0.2) ? positions.data() : nullptr;
      const int32_t* ids = random_.Chance(0.5) ? token_ids.data() : nullptr;
      ASSERT_OK(subject.memory->Append(shape.layer, keys.tensor, values.tensor, given, ids));
      subject.live->Append(layer, keys.tensor, values.tensor, given, ids);
    }
  }

  void Truncate(Subject& subject) {
    SCOPED_TRACE("truncate");
    const int64_t whole = subject.live->Whole();
    const int64_t tokens =
        random_.Chance(0.1) ? random_.Between(0, whole) : std::max<int64_t>(0, whole - random_.Between(0, 300));
    EXPECT_TRUE(absl::IsOutOfRange(subject.memory->Truncate(whole + 1)));
    ASSERT_OK(subject.memory->Truncate(tokens));
    subject.live->Truncate(tokens);
  }

  void Fork(Subject& subject) {
    SCOPED_TRACE("fork");
    if (subjects_.size() > 4) return;
    const int64_t whole = subject.live->Whole();
    const int64_t at = random_.Chance(0.5) ? random_.Between(0, whole) : whole;
    Subject child;
    child.name = absl::StrCat("memory ", next_name_++);
    auto memory = store_->ForkMemory(subject.memory, at, child.name);
    ASSERT_OK(memory.status());
    Committed(subject);
    child.memory = *memory;
    child.own_positions = subject.own_positions;
    child.live = std::make_unique<Oracle>(*subject.live);
    child.live->Truncate(at);
    child.durable = std::make_unique<Oracle>(*child.live);
    subjects_.push_back(std::move(child));
  }

  void Drop(Subject& subject) {
    SCOPED_TRACE("drop");
    EXPECT_TRUE(absl::IsFailedPrecondition(store_->DropMemory(subject.name)));
    ASSERT_OK(store_->CloseMemory(subject.memory));
    ASSERT_OK(store_->DropMemory(subject.name));
    std::erase_if(subjects_, [&](const Subject& other) { return &other == &subject; });
  }

  void Reopen() {
    SCOPED_TRACE("reopen");
    for (Subject& subject : subjects_) {
      subject.snapshots.clear();
      ASSERT_OK(store_->CloseMemory(subject.memory));
      subject.memory.reset();
    }
    ASSERT_OK(store_->Close());
    store_.reset();
    Open();
    for (Subject& subject : subjects_) {
      auto memory = store_->OpenMemory(subject.name, &card_);
      ASSERT_OK(memory.status());
      subject.memory = *memory;
      *subject.live = *subject.durable;
    }
  }

  void Attend() {
    SCOPED_TRACE("attend");
    AttendCase made;
    made.layer = card_.layers[static_cast<size_t>(random_.Between(0, 1))];
    const int64_t batch = random_.Between(1, 3);
    int64_t longest = 0;
    for (int64_t i = 0; i < batch; ++i) {
      SequenceCase sequence;
      sequence.queries = random_.Between(0, 3);
      sequence.locals = random_.Between(0, 5);
      if (random_.Chance(0.9)) {
        Subject& subject = Any();
        sequence.memory = subject.memory.get();
        sequence.oracle = subject.live.get();
        if (!subject.snapshots.empty() && random_.Chance(0.5)) {
          const Subject::Held& held = subject.snapshots[static_cast<size_t>(
              random_.Between(0, static_cast<int64_t>(subject.snapshots.size()) - 1))];
          sequence.snapshot = &held.snapshot;
          sequence.oracle = &held.oracle;
        }
        const int64_t end = sequence.oracle->End(static_cast<size_t>(card_.FindLayer(made.layer.layer)));
        longest = std::max(longest, end);
        if (random_.Chance(0.3)) sequence.memory_end = random_.Between(0, end + 5);
        if (random_.Chance(0.3)) sequence.memory_begin = random_.Between(0, end);
      }
      made.sequences.push_back(sequence);
    }
    const auto chance = [&](double p) { return !exact_ && random_.Chance(p); };
    if (!exact_) made.policy = static_cast<PositionPolicy>(random_.Between(0, 3));
    made.fusion = static_cast<Fusion>(random_.Between(0, 3));
    made.mask = static_cast<LocalMask::Kind>(random_.Between(0, 3));
    made.window = random_.Between(0, 4);
    made.normalise_query = chance(0.2);
    made.own_positions = chance(0.3);
    made.decay_beyond = static_cast<float>(random_.Between(1, 200));
    made.query_dtype = kInput[random_.Between(0, 2)];
    made.local_dtype = kInput[random_.Between(0, 2)];
    made.output_dtype = kInput[random_.Between(0, 2)];
    made.exact = exact_;
    made.SetTopK(random_.OneOf<int64_t>({0, 1, 7, 64, longest + 3}));
    const bool decays = chance(0.3), biased = random_.Chance(0.3);
    for (HeadRule& head : made.heads) {
      if (random_.Chance(0.2)) head.top_k = random_.OneOf<int64_t>({0, 1, longest + 3});
      head.distance = static_cast<float>(random_.Between(0, 1500)) / 2;
      if (biased) head.memory_bias = static_cast<float>(random_.Between(-4, 4)) / 2;
      if (decays) head.decay = static_cast<float>(random_.Between(0, 8)) / 8;
      if (chance(0.1)) head.scale = 0.6f;
      head.gate = static_cast<float>(random_.Between(-6, 6)) / 2;
    }
    AttendCall call(random_, made);
    if (random_.Chance(0.5)) {
      call.RunAndCheck(*pool_);
    } else {
      call.RunAndCheck();
    }
  }

  TestRandom& random_;
  const bool exact_;
  ModelCard card_;
  TempFolder folder_;
  std::unique_ptr<Executor> pool_;
  std::unique_ptr<Store> store_;
  std::vector<Subject> subjects_;
  int next_name_ = 0;
};

class DifferentialTest : public ::testing::TestWithParam<int> {};

TEST_P(DifferentialTest, AgreesWithThePlainModel) {
  TestRandom random(static_cast<uint32_t>(1000 + GetParam()));
  SCOPED_TRACE(absl::StrCat("MNEME_TEST_SEED=", random.seed()));
  Machine(random, false).Run(120);
}

// Logits are exact here, so order and ties must equal the reference's in every place.
TEST_P(DifferentialTest, BreaksTiesByTheLowerToken) {
  TestRandom random(static_cast<uint32_t>(2000 + GetParam()));
  SCOPED_TRACE(absl::StrCat("MNEME_TEST_SEED=", random.seed()));
  Machine(random, true).Run(80);
}

INSTANTIATE_TEST_SUITE_P(Seeds, DifferentialTest, ::testing::Range(0, 12));

}  // namespace
}  // namespace mneme
