// SPDX-License-Identifier: Apache-2.0
// What the adapter refuses once a model is loaded, and that a refusal leaves cache and memory as they were. Refusals
// that need no model are in context_check_test.cc, model_shape_test.cc, gguf_file_test.cc and graph_nodes_test.cc.
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

class RefusalsTest : public ::testing::Test {
 protected:
  // A session with a window of 64 tokens and an empty memory in sequence 0; further sequences have none.
  void Start(const std::string& policy, int32_t sequences = 1) {
    ModelSettings settings = SettingsFor(SmolPath());
    settings.policy = policy;
    settings.window = 64;
    session_ = std::make_unique<Session>(Smol(), settings, sequences);
    memory_ = std::make_unique<Memory>(store_, policy, *session_, /*create=*/true, 0, "f16");
    session_->Attach(0, memory_->get(), MNEME_LLAMA_MODE_APPEND);
  }
  void TearDown() override {
    if (session_ != nullptr) session_->Detach(0);
  }

  mneme_status Decode(int64_t begin, int64_t count, llama_pos position = -1) {
    std::vector<llama_token> tokens = TextTokens(Smol(), begin, count);
    std::vector<llama_pos> positions(tokens.size());
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = position + static_cast<llama_pos>(i);
    llama_batch batch = llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()));
    if (position >= 0) batch.pos = positions.data();
    return mneme_llama_decode(session_->adapter(), batch);
  }
  // Tokens of sequences that may have no memory, at positions from `position` on.
  mneme_status DecodeIn(std::vector<llama_seq_id> ids, int64_t count, llama_pos position) {
    std::vector<llama_token> tokens = TextTokens(Smol(), 0, count);
    std::vector<llama_pos> positions(tokens.size());
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = position + static_cast<llama_pos>(i);
    std::vector<llama_seq_id*> pointers(tokens.size(), ids.data());
    std::vector<int32_t> counts(tokens.size(), static_cast<int32_t>(ids.size()));
    return mneme_llama_decode(session_->adapter(), {static_cast<int32_t>(count), tokens.data(), nullptr,
                                                    positions.data(), counts.data(), pointers.data(), nullptr});
  }
  void ExpectCached(llama_seq_id id, llama_pos first, llama_pos last) {
    EXPECT_EQ(llama_memory_seq_pos_min(cache(), id), first) << id;
    EXPECT_EQ(llama_memory_seq_pos_max(cache(), id), last) << id;
  }
  llama_memory_t cache() { return llama_get_memory(session_->context()); }
  void ExpectRefused(mneme_status status, const std::string& reason) {
    EXPECT_EQ(status, MNEME_STATUS_FAILED_PRECONDITION);
    EXPECT_THAT(mneme_llama_last_error(), HasSubstr(reason));
  }

  const TemporaryFolder folder_;
  const Store store_{folder_.path(), 2};
  std::unique_ptr<Session> session_;
  std::unique_ptr<Memory> memory_;
};

TEST_F(RefusalsTest, ShiftedPositionsUnderAsStored) {
  Start("as-stored");
  ASSERT_EQ(Decode(0, 64), MNEME_OK) << mneme_llama_last_error();
  ASSERT_EQ(Decode(64, 32, 64), MNEME_OK) << mneme_llama_last_error();
  // The host slides its window by itself, as programs of llama.cpp do: drop 32 tokens, shift the rest.
  llama_memory_seq_rm(cache(), 0, 0, 32);
  llama_memory_seq_add(cache(), 0, 32, -1, -32);
  ExpectRefused(Decode(96, 8, 64), "rotated keys as stored allow no shifted positions");
  EXPECT_EQ(memory_->Info().next_token, 96);
}

TEST_F(RefusalsTest, ShiftedPositionsAreNoticedWithoutPositions) {
  Start("as-stored");
  ASSERT_EQ(Decode(0, 64), MNEME_OK);
  llama_memory_seq_rm(cache(), 0, 0, 32);
  llama_memory_seq_add(cache(), 0, 32, -1, -32);
  EXPECT_NE(Decode(64, 8), MNEME_OK);
  EXPECT_EQ(memory_->Info().next_token, 64);
}

TEST_F(RefusalsTest, RowsTakenFromTheCacheBehindItsBack) {
  Start("fixed");
  ASSERT_EQ(Decode(0, 64), MNEME_OK);
  llama_memory_seq_rm(cache(), 0, 0, 32);
  ExpectRefused(Decode(64, 8), "the cache holds 33 tokens of sequence 0, expected 65");
  EXPECT_EQ(memory_->Info().next_token, 64);
  EXPECT_EQ(llama_memory_seq_pos_max(cache(), 0), 63);
}

TEST_F(RefusalsTest, AMemoryChangedBehindItsBack) {
  Start("fixed");
  ASSERT_EQ(Decode(0, 64), MNEME_OK);
  ASSERT_EQ(mneme_memory_truncate(memory_->get(), 40), MNEME_OK);
  ExpectRefused(Decode(64, 8), "the memory stands at token 40, expected 64");
}

TEST_F(RefusalsTest, AFailedStepLeavesNothingBehind) {
  Start("fixed");
  ASSERT_EQ(Decode(0, 64), MNEME_OK);
  llama_memory_seq_rm(cache(), 0, 0, 32);
  ASSERT_NE(Decode(64, 8), MNEME_OK);
  // Told of the removal, the adapter goes on where it was.
  llama_memory_seq_rm(cache(), 0, -1, -1);
  session_->Attach(0, memory_->get(), MNEME_LLAMA_MODE_APPEND);
  EXPECT_EQ(Decode(64, 8), MNEME_OK) << mneme_llama_last_error();
  EXPECT_EQ(memory_->Info().next_token, 72);
}

TEST_F(RefusalsTest, ARefusedBatchLeavesSequencesWithoutMemoryAlone) {
  Start("fixed", 3);
  ASSERT_EQ(DecodeIn({1}, 40, 0), MNEME_OK) << mneme_llama_last_error();
  EXPECT_NE(DecodeIn({1}, 8, 0), MNEME_OK) << "positions that are taken";
  ExpectCached(1, 0, 39);
  EXPECT_NE(DecodeIn({1}, 8, 20), MNEME_OK);
  ExpectCached(1, 0, 39);
  EXPECT_NE(DecodeIn({1, 2}, 8, 0), MNEME_OK) << "sequences that have nothing in common";
  ExpectCached(1, 0, 39);
  ExpectCached(2, -1, -1);
  EXPECT_EQ(DecodeIn({1}, 8, 40), MNEME_OK) << mneme_llama_last_error();
}

// The step of sequence 0 fails; sequences 1 and 2 lose the batch's tokens and nothing else.
TEST_F(RefusalsTest, AFailedStepIsTakenBackInEverySequence) {
  Start("fixed", 3);
  ASSERT_EQ(DecodeIn({0}, 40, 0), MNEME_OK) << mneme_llama_last_error();
  ASSERT_EQ(DecodeIn({1, 2}, 10, 0), MNEME_OK) << mneme_llama_last_error();
  llama_memory_seq_rm(cache(), 0, 0, 20);
  std::vector<llama_token> tokens = TextTokens(Smol(), 0, 2);
  llama_seq_id first = 0;
  llama_seq_id others[] = {1, 2};
  llama_seq_id* ids[] = {&first, others};
  int32_t counts[] = {1, 2};
  llama_pos positions[] = {40, 10};
  ExpectRefused(mneme_llama_decode(session_->adapter(), {2, tokens.data(), nullptr, positions, counts, ids, nullptr}),
                "the cache holds 21 tokens of sequence 0, expected 41");
  ExpectCached(0, 20, 39);
  ExpectCached(1, 0, 9);
  ExpectCached(2, 0, 9);
}

// Each of these would end the process inside llama.cpp.
TEST_F(RefusalsTest, BatchesThatLlamaWouldAbortFor) {
  Start("fixed");
  const auto expect = [](mneme_status status, const std::string& reason) {
    EXPECT_EQ(status, MNEME_STATUS_INVALID_ARGUMENT);
    EXPECT_THAT(mneme_llama_last_error(), HasSubstr(reason));
  };
  expect(Decode(0, 65), "batch: has 65 tokens, the context takes at most 64 (n_batch)");
  expect(DecodeIn({1}, 1, 0), "sequence: expected 0 to 0 (n_seq_max), got 1");
  expect(DecodeIn({100000}, 1, 0), "sequence: expected 0 to 0 (n_seq_max), got 100000");
  expect(DecodeIn({-1}, 1, 0), "sequence: expected 0 to 0 (n_seq_max), got -1");
  expect(DecodeIn({0}, 1, -5), "batch: token 0 has position -5");
  expect(mneme_llama_set_memory(session_->adapter(), 100000, memory_->get(), MNEME_LLAMA_MODE_READ),
         "sequence: expected 0 to 0 (n_seq_max), got 100000");
  EXPECT_EQ(Decode(0, 64), MNEME_OK) << mneme_llama_last_error();
  EXPECT_EQ(memory_->Info().next_token, 64);
}

TEST_F(RefusalsTest, AMemoryOfAnotherModel) {
  Start("fixed", 2);
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.weights_fingerprint = "other weights";
  mneme_llama* other = nullptr;
  ASSERT_EQ(mneme_llama_create(Smol(), &options, &other), MNEME_OK);
  const AdapterPtr owned(other);
  mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
  ASSERT_EQ(mneme_llama_fill_memory_options(other, 0, &rows), MNEME_OK);
  mneme_memory* foreign = nullptr;
  ASSERT_EQ(mneme_memory_create(store_.get(), "foreign", mneme_llama_get_card(other), &rows, &foreign), MNEME_OK);
  ExpectRefused(mneme_llama_set_memory(session_->adapter(), 1, foreign, MNEME_LLAMA_MODE_READ), "other weights");
  ASSERT_EQ(mneme_memory_close(foreign), MNEME_OK);
  EXPECT_EQ(mneme_memory_open(store_.get(), "foreign", mneme_llama_get_card(session_->adapter()), &foreign),
            MNEME_STATUS_FAILED_PRECONDITION);
}

TEST_F(RefusalsTest, KeysOfTheOtherKind) {
  Start("fixed", 2);
  mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
  rows.keys_rotated = 1;
  mneme_memory* rotated = nullptr;
  ASSERT_EQ(mneme_memory_create(store_.get(), "rotated", mneme_llama_get_card(session_->adapter()), &rows, &rotated),
            MNEME_OK);
  ExpectRefused(mneme_llama_set_memory(session_->adapter(), 1, rotated, MNEME_LLAMA_MODE_READ), "rotated keys");
  EXPECT_EQ(mneme_memory_close(rotated), MNEME_OK);
}

TEST_F(RefusalsTest, TwoWritersAndLateMemories) {
  Start("fixed", 2);
  mneme_llama* adapter = session_->adapter();
  ExpectRefused(mneme_llama_set_memory(adapter, 1, memory_->get(), MNEME_LLAMA_MODE_APPEND), "only readers can share");
  ExpectRefused(mneme_llama_set_memory(adapter, 1, memory_->get(), MNEME_LLAMA_MODE_READ), "only readers can share");
  ASSERT_EQ(Decode(0, 8), MNEME_OK);
  ExpectRefused(mneme_llama_set_memory(adapter, 0, memory_->get(), MNEME_LLAMA_MODE_APPEND),
                "in llama.cpp's cache already");
}

TEST_F(RefusalsTest, ContextsThatWereNotPrepared) {
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  const std::string path = SmolPath();
  options.model_path = path.c_str();
  options.window = 64;
  mneme_llama* made = nullptr;
  ASSERT_EQ(mneme_llama_create(Smol(), &options, &made), MNEME_OK);
  const AdapterPtr adapter(made);
  const ContextPtr plain = PlainContext(Smol(), 256, 64);
  ASSERT_EQ(mneme_llama_bind(made, plain.get()), MNEME_OK);
  mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
  mneme_memory* memory = nullptr;
  ASSERT_EQ(mneme_memory_create(store_.get(), "m", mneme_llama_get_card(made), &rows, &memory), MNEME_OK);
  ASSERT_EQ(mneme_llama_set_memory(made, 0, memory, MNEME_LLAMA_MODE_APPEND), MNEME_OK);
  std::vector<llama_token> tokens = TextTokens(Smol(), 0, 4);
  ExpectRefused(mneme_llama_decode(made, llama_batch_get_one(tokens.data(), 4)), "0 passed the adapter");
  EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(plain.get()), 0), -1);
  EXPECT_EQ(mneme_memory_close(memory), MNEME_OK);
}

TEST_F(RefusalsTest, ModelsWithoutAName) {
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  mneme_llama* adapter = nullptr;
  EXPECT_EQ(mneme_llama_create(Smol(), &options, &adapter), MNEME_STATUS_INVALID_ARGUMENT);
  EXPECT_THAT(mneme_llama_last_error(), HasSubstr("model_path"));
  EXPECT_EQ(mneme_llama_create(nullptr, &options, &adapter), MNEME_STATUS_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace mneme::llama
