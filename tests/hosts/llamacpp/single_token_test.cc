// SPDX-License-Identifier: Apache-2.0
// Batches of one token while no row of the memory is visible yet. Gemma has one KV head: there the flat products have
// the shape of the rows by heads.
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hosts/llamacpp/main/block_reader.h"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

class SingleTokenTest : public ::testing::Test {
 protected:
  explicit SingleTokenTest(int32_t window = 512) {
    settings_ = SettingsFor(GemmaPath());
    settings_.window = window;
  }

  // The keys of the first layer with a memory, for tokens [0, tokens).
  static std::vector<float> Keys(const Session& session, const Memory& memory, int64_t tokens) {
    const int32_t* layers = nullptr;
    mneme_llama_get_layers(session.adapter(), &layers);
    std::vector<float> keys(static_cast<size_t>(tokens) * 256);
    const int64_t shape[] = {tokens, 1, 256};
    const mneme_tensor tensor = {keys.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
    args.layer = layers[0];
    args.tokens = tokens;
    args.keys = &tensor;
    EXPECT_EQ(mneme_memory_read(memory.get(), &args), MNEME_OK) << mneme_last_error();
    return keys;
  }

  ModelSettings settings_;
  const TemporaryFolder folder_;
  const Store store_{folder_.path(), 2};
};

TEST_F(SingleTokenTest, AnIngestMayEndWithABlockOfOneToken) {
  const std::vector<llama_token> tokens = TextTokens(Gemma(), 0, 513);
  Session session(Gemma(), settings_);
  const Memory memory(store_, "m", session, /*create=*/true, 0, "f16");
  Ingest(session, memory, tokens, "m", MNEME_DURABILITY_BUFFERED, nullptr);
  EXPECT_EQ(memory.Info().next_token, 513);
  session.Detach(0);
}

// Token by token the memory gets the rows that it gets from a block.
TEST_F(SingleTokenTest, TokenByTokenIsTheSameText) {
  constexpr int64_t kCount = 6;
  const std::vector<llama_token> tokens = TextTokens(Gemma(), 0, kCount);
  for (const char* policy : {"fixed", "as-stored"}) {
    settings_.policy = policy;
    Session session(Gemma(), settings_);
    const Memory singles(store_, std::string("singles ") + policy, session, /*create=*/true, 0, "f32");
    session.Attach(0, singles.get(), MNEME_LLAMA_MODE_APPEND);
    for (const llama_token& token : tokens) session.Decode(std::span(&token, 1), /*all_logits=*/false);
    EXPECT_EQ(singles.Info().next_token, kCount) << policy;
    session.Detach(0);
    const Memory block(store_, std::string("block ") + policy, session, /*create=*/true, 0, "f32");
    session.Attach(0, block.get(), MNEME_LLAMA_MODE_APPEND);
    session.Decode(tokens, /*all_logits=*/false);
    session.Detach(0);
    const std::vector<float> expected = Keys(session, block, kCount);
    const std::vector<float> actual = Keys(session, singles, kCount);
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(actual[i], expected[i], 0.3) << policy << " " << i;
  }
}

}  // namespace
}  // namespace mneme::llama
