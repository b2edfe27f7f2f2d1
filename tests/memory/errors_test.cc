// SPDX-License-Identifier: Apache-2.0
// Which calls are refused, with which message, and that a refused call changes nothing.

#include <cmath>
#include <limits>

#include "tests/memory/attend_call.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kOwner = 41;

class ErrorsTest : public ::testing::Test {
 protected:
  ErrorsTest() {
    options_.segment_tokens = 256;
    options_.pinned_tokens = 3;
    memory_ = *store_->CreateMemory("m", card_, options_);
    oracle_ = std::make_unique<Oracle>(card_, options_);
    AppendTokens(*memory_, oracle_.get(), kOwner, 0, 300);
    EXPECT_OK(memory_->Commit(Durability::kBuffered, nullptr));
    AppendTokens(*memory_, oracle_.get(), kOwner, 300, 10);
  }
  ~ErrorsTest() override { ExpectHolds(*memory_, *oracle_); }

  absl::Status Append(int32_t layer, const Rows& keys, const Rows& values, const int64_t* positions = nullptr) {
    return memory_->Append(layer, keys.tensor, values.tensor, positions, nullptr);
  }
  static Rows Filled(int64_t rows, int64_t heads, int64_t dim, float value, DType dtype = DType::kF32) {
    return MakeRows(dtype, rows, heads, dim, [&](auto...) { return value; });
  }

  ModelCard card_ = UnequalCard();
  MemoryOptions options_;
  TempFolder folder_;
  std::unique_ptr<Store> store_ = OpenStore(folder_.store());
  std::shared_ptr<Memory> memory_;
  std::unique_ptr<Oracle> oracle_;
};

TEST_F(ErrorsTest, RowsOfTheWrongShapeOrLayer) {
  EXPECT_THAT(std::string(Append(4, Filled(1, 2, 16, 1), Filled(1, 2, 16, 1)).message()), HasSubstr("layer"));
  struct Case {
    Rows keys, values;
    const char* message;
  };
  const Case cases[] = {
      {Filled(2, 3, 16, 1), Filled(2, 2, 16, 1), "keys: expected shape [2, 2, 16], got [2, 3, 16]"},
      {Filled(2, 2, 15, 1), Filled(2, 2, 16, 1), "keys: expected shape"},
      {Filled(2, 2, 16, 1), Filled(1, 2, 16, 1), "values: expected shape [2, 2, 16], got [1, 2, 16]"},
      {Filled(2, 2, 16, 1), Filled(2, 1, 16, 1), "values: expected shape"},
      {Filled(2, 2, 16, 1), Filled(2, 2, 8, 1), "values: expected shape"},
  };
  for (const Case& c : cases) {
    const absl::Status status = Append(3, c.keys, c.values);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

TEST_F(ErrorsTest, NanAndInfinity) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      const Rows spoilt = MakeRows(dtype, 5, 2, 16, [&](int64_t row, int64_t head, int64_t i) {
        return row == 4 && head == 1 && i == 15 ? bad : 1.0f;
      });
      const absl::Status keys = Append(3, spoilt, Filled(5, 2, 16, 1));
      EXPECT_TRUE(absl::IsInvalidArgument(keys));
      EXPECT_THAT(std::string(keys.message()), HasSubstr("keys: expected finite numbers"));
      EXPECT_THAT(std::string(keys.message()), HasSubstr("row 4 of head 1"));
      const absl::Status values = Append(3, Filled(5, 2, 16, 1), spoilt);
      EXPECT_THAT(std::string(values.message()), HasSubstr("values: expected finite numbers"));
    }
  }
}

// Numbers that are finite as given and infinite as stored are refused.
TEST_F(ErrorsTest, NumbersBeyondTheStoredType) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    MemoryOptions options;
    options.stored_dtype = dtype;
    const auto memory = *store_->CreateMemory(std::string(DTypeName(dtype)), card_, options);
    for (const float value : {65519.0f, 65520.0f, 3.38e38f, std::numeric_limits<float>::max()}) {
      for (const bool in_keys : {true, false}) {
        const Rows big = Filled(1, 2, 16, value);
        const Rows small = Filled(1, 2, 16, 1);
        const int64_t before = memory->TakeSnapshot().layer_ends[0];
        const absl::Status status =
            memory->Append(3, (in_keys ? big : small).tensor, (in_keys ? small : big).tensor, nullptr, nullptr);
        const bool holds = dtype == DType::kF16 ? value < 65520 : dtype != DType::kBF16 || value < 3.39e38f;
        EXPECT_EQ(status.ok(), holds) << DTypeName(dtype) << " " << value << ": " << status;
        EXPECT_EQ(memory->TakeSnapshot().layer_ends[0] - before, holds ? 1 : 0);
      }
    }
  }
}

TEST_F(ErrorsTest, PositionsThatLayersDisagreeAbout) {
  const std::vector<int64_t> first = {1000, 1001, 1002, 1003};
  const Rows keys = KeysOf(kOwner, card_.layers[0], 310, 4), values = ValuesOf(kOwner, card_.layers[0], 310, 4);
  ASSERT_OK(Append(3, keys, values, first.data()));
  oracle_->Append(0, keys.tensor, values.tensor, first.data(), nullptr);
  const Rows other_keys = KeysOf(kOwner, card_.layers[1], 310, 6);
  const Rows other_values = ValuesOf(kOwner, card_.layers[1], 310, 6);
  std::vector<int64_t> second = {1000, 1001, 1002, 1004, 1005, 1006};
  const absl::Status status = Append(7, other_keys, other_values, second.data());
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("positions[3]: expected 1003"));
  EXPECT_EQ(memory_->TakeSnapshot().layer_ends[1], 310);
  second[3] = 1003;
  ASSERT_OK(Append(7, other_keys, other_values, second.data()));
  oracle_->Append(1, other_keys.tensor, other_values.tensor, second.data(), nullptr);
}

TEST_F(ErrorsTest, ARefusedAppendFixesNoPositions) {
  const Rows keys = KeysOf(kOwner, card_.layers[0], 310, 4), values = ValuesOf(kOwner, card_.layers[0], 310, 4);
  const Rows spoilt = MakeRows(DType::kF32, 4, 2, 16, [&](int64_t row, int64_t head, int64_t i) {
    return row == 3 && head == 1 && i == 15 ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
  });
  const std::vector<int64_t> refused = {2000, 2001, 2002, 2003}, accepted = {1000, 1001, 1002, 1003};
  EXPECT_TRUE(absl::IsInvalidArgument(Append(3, keys, spoilt, refused.data())));
  ASSERT_OK(Append(3, keys, values, accepted.data()));
  oracle_->Append(0, keys.tensor, values.tensor, accepted.data(), nullptr);
}

TEST_F(ErrorsTest, RangesOutsideTheMemory) {
  EXPECT_TRUE(absl::IsOutOfRange(memory_->Truncate(311)));
  EXPECT_TRUE(absl::IsOutOfRange(memory_->Truncate(-1)));
  EXPECT_TRUE(absl::IsInvalidArgument(memory_->Evict(2)));
  EXPECT_TRUE(absl::IsInvalidArgument(memory_->Evict(-1)));
  EXPECT_TRUE(absl::IsOutOfRange(store_->ForkMemory(memory_, 311, "f").status()));
  EXPECT_TRUE(absl::IsOutOfRange(store_->ForkMemory(memory_, -1, "f").status()));
  EXPECT_TRUE(absl::IsNotFound(store_->OpenMemory("f", nullptr).status()));
  ReadRequest read;
  read.layer = 3;
  for (const auto& [begin, tokens] : {std::pair<int64_t, int64_t>{-1, 1}, {0, 311}, {310, 1}, {5, -1}}) {
    read.begin = begin;
    read.tokens = tokens;
    EXPECT_TRUE(absl::IsOutOfRange(memory_->Read(read))) << begin;
  }
  read.layer = 5;
  EXPECT_TRUE(absl::IsInvalidArgument(memory_->Read(read)));
}

TEST_F(ErrorsTest, NamesOptionsAndCards) {
  const auto create = [&](const std::string& name, const ModelCard& card, const MemoryOptions& options) {
    return store_->CreateMemory(name, card, options).status();
  };
  EXPECT_TRUE(absl::IsInvalidArgument(create("", card_, {})));
  EXPECT_TRUE(absl::IsInvalidArgument(create(std::string(256, 'n'), card_, {})));
  EXPECT_TRUE(absl::IsAlreadyExists(create("m", card_, {})));
  EXPECT_TRUE(absl::IsInvalidArgument(create("n", ModelCard{}, {})));
  ModelCard bad_card = card_;
  bad_card.layers[1].kv_heads = 3;
  EXPECT_TRUE(absl::IsInvalidArgument(create("n", bad_card, {})));
  struct Case {
    void (*spoil)(MemoryOptions&);
    const char* message;
  };
  const Case cases[] = {
      {[](MemoryOptions& o) { o.max_tokens = -1; }, "options.max_tokens"},
      {[](MemoryOptions& o) { o.pinned_tokens = -1; }, "options.pinned_tokens"},
      {[](MemoryOptions& o) { o.max_tokens = o.pinned_tokens = 5; }, "options.max_tokens: expected more than the 5"},
      {[](MemoryOptions& o) { o.segment_tokens = 0; }, "options.segment_tokens"},
      {[](MemoryOptions& o) { o.segment_tokens = 300; }, "options.segment_tokens"},
      {[](MemoryOptions& o) { o.index_spec = "tree"; }, "tree"},
  };
  for (const Case& c : cases) {
    MemoryOptions options;
    c.spoil(options);
    const absl::Status status = create("n", card_, options);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
  EXPECT_TRUE(absl::IsUnimplemented(create("n", card_, [] {
    MemoryOptions options;
    options.index_spec = "gpu-cagra";
    return options;
  }())));
  EXPECT_TRUE(absl::IsNotFound(store_->OpenMemory("n", nullptr).status()));
  EXPECT_EQ(store_->Stats()->database.memory_count, 1u);

  ModelCard foreign = card_;
  foreign.weights_fingerprint = "sha256:2";
  for (int open = 0; open < 2; ++open) {
    const absl::Status status = store_->OpenMemory("m", &foreign).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr("weights_fingerprint"));
    // The same for a memory that is not open yet.
    if (open == 0) {
      ASSERT_OK(memory_->Commit(Durability::kBuffered, nullptr));
      ASSERT_OK(store_->CloseMemory(memory_));
    }
  }
  memory_ = *store_->OpenMemory("m", &card_);
  EXPECT_TRUE(absl::IsInvalidArgument(store_->ForkMemory(memory_, 3, "").status()));
  EXPECT_TRUE(absl::IsAlreadyExists(store_->ForkMemory(memory_, 3, "m").status()));
  StoreOptions no_threads;
  no_threads.threads = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(Store::Open(folder_.path() + "/other", no_threads).status()));
}

TEST_F(ErrorsTest, OpensAndClosesAreCounted) {
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->Close()));
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->DropMemory("m")));
  EXPECT_TRUE(absl::IsNotFound(store_->DropMemory("n")));
  const auto again = *store_->OpenMemory("m", &card_);
  EXPECT_EQ(again, memory_);
  ASSERT_OK(store_->CloseMemory(again));
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->DropMemory("m")));
  ASSERT_OK(memory_->Commit(Durability::kBuffered, nullptr));
  ASSERT_OK(store_->CloseMemory(memory_));
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->CloseMemory(memory_)));
  const Rows keys = KeysOf(kOwner, card_.layers[0], 310, 1), values = ValuesOf(kOwner, card_.layers[0], 310, 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(Append(3, keys, values)));
  EXPECT_TRUE(absl::IsFailedPrecondition(memory_->Truncate(0)));
  EXPECT_TRUE(absl::IsFailedPrecondition(memory_->Evict(10)));
  EXPECT_TRUE(absl::IsFailedPrecondition(memory_->Maintain(nullptr)));
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->ForkMemory(memory_, 1, "f").status()));
  memory_ = *store_->OpenMemory("m", &card_);
}

TEST_F(ErrorsTest, AStoreOpenForReadingIsNotWritten) {
  ASSERT_OK(memory_->Commit(Durability::kSynced, nullptr));
  ASSERT_OK(store_->CloseMemory(memory_));
  memory_.reset();
  store_.reset();
  for (const auto mode : {DatabaseOptions::Mode::kReadOnly, DatabaseOptions::Mode::kFollow}) {
    memory_.reset();
    store_.reset();
    StoreOptions options;
    options.database.mode = mode;
    store_ = OpenStore(folder_.store(), options);
    memory_ = *store_->OpenMemory("m", &card_);
    ExpectHolds(*memory_, *oracle_);
    EXPECT_TRUE(absl::IsFailedPrecondition(store_->CreateMemory("n", card_, {}).status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(store_->DropMemory("m")));
    EXPECT_TRUE(absl::IsFailedPrecondition(store_->ForkMemory(memory_, 1, "f").status()));
    const Rows keys = KeysOf(kOwner, card_.layers[0], 310, 1), values = ValuesOf(kOwner, card_.layers[0], 310, 1);
    EXPECT_TRUE(absl::IsFailedPrecondition(Append(3, keys, values)));
    EXPECT_TRUE(absl::IsFailedPrecondition(memory_->Commit(Durability::kBuffered, nullptr)));
    EXPECT_TRUE(absl::IsFailedPrecondition(memory_->Truncate(0)));
    EXPECT_TRUE(absl::IsFailedPrecondition(memory_->Evict(10)));
    EXPECT_TRUE(absl::IsFailedPrecondition(memory_->Maintain(nullptr)));
    TestRandom random(3);
    AttendCase made;
    made.layer = card_.layers[0];
    made.sequences = {{memory_.get(), oracle_.get(), nullptr, 2, 2, 0, -1}};
    made.SetTopK(12);
    AttendCall(random, made).RunAndCheck();
  }
}

// Damaged rows are an error that names them; a batch serves its sound sequences.
TEST_F(ErrorsTest, DamagedRowsAreNeverServed) {
  const auto sound = *store_->CreateMemory("sound", card_, options_);
  Oracle sound_oracle(card_, options_);
  AppendTokens(*sound, &sound_oracle, 7, 0, 20);
  auto doomed = *store_->CreateMemory("doomed", card_, options_);
  AppendTokens(*doomed, nullptr, 8, 0, 300);
  ASSERT_OK(doomed->Commit(Durability::kBuffered, nullptr));
  const SegmentId segment = doomed->TakeSnapshot().state->sealed.at(0).segment->id();
  ASSERT_OK(store_->CloseMemory(doomed));
  doomed.reset();
  ASSERT_OK(store_->database().DropSegments({segment}));
  doomed = *store_->OpenMemory("doomed", nullptr);

  TestRandom random(3);
  AttendCase made;
  made.layer = card_.layers[1];
  made.sequences = {{sound.get(), &sound_oracle, nullptr, 2, 2, 0, -1},
                    {doomed.get(), nullptr, nullptr, 2, 2, 0, -1},
                    {nullptr, nullptr, nullptr, 2, 2, 0, -1}};
  made.SetTopK(12);
  AttendCall call(random, made);
  const absl::Status status = call.Run();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("segment ", segment)));
  for (const int64_t token : call.result().tokens) EXPECT_EQ(token, -77);  // nothing was written

  std::vector<absl::Status> statuses(3);
  call.request().statuses = absl::MakeSpan(statuses);
  ASSERT_OK(call.Run());
  EXPECT_TRUE(statuses[0].ok() && statuses[2].ok());
  EXPECT_TRUE(absl::IsDataLoss(statuses[1]));
  const auto dim = static_cast<size_t>(made.layer.value_dim * made.layer.query_heads);
  for (size_t i = 2 * dim; i < 4 * dim; ++i) EXPECT_EQ(call.result().output[i], 0.0f);
  for (size_t i = 0; i < 2 * dim; ++i) EXPECT_NE(call.result().output[i], 0.0f);

  VerifyReport report;
  ASSERT_OK(store_->Verify(nullptr, &report));
  EXPECT_EQ(report.memories, 3);
  EXPECT_EQ(report.damaged_memories, 1);
  EXPECT_GT(report.damaged_values, 0);
  EXPECT_TRUE(absl::IsCancelled(store_->Verify([](int64_t, int64_t) { return false; }, &report)));
}

}  // namespace
}  // namespace mneme
