// SPDX-License-Identifier: Apache-2.0
// The adapter's own bookkeeping on a real model: windows that slide and start again, choices of layers, figures.
#include <cmath>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/main/block_reader.h"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

struct Made {
  AdapterPtr adapter;
  ContextPtr context;
};

Made Make(mneme_llama_options options) {
  static const std::string path = SmolPath();
  options.model_path = path.c_str();
  Made made;
  mneme_llama* adapter = nullptr;
  EXPECT_EQ(mneme_llama_create(Smol(), &options, &adapter), MNEME_OK) << mneme_llama_last_error();
  made.adapter.reset(adapter);
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 256;
  params.n_batch = params.n_ubatch = 64;
  params.n_threads = params.n_threads_batch = 2;
  EXPECT_EQ(mneme_llama_prepare(adapter, &params), MNEME_OK) << mneme_llama_last_error();
  made.context.reset(llama_init_from_model(Smol(), params));
  EXPECT_EQ(mneme_llama_bind(adapter, made.context.get()), MNEME_OK);
  return made;
}

// Logits of the last block after reading 5 blocks of 64.
std::vector<std::vector<float>> Read(mneme_llama_options options, llama_pos* next_position) {
  options.window = 64;
  const Made made = Make(options);
  const TemporaryFolder folder;
  const Store store(folder.path(), 2);
  mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
  EXPECT_EQ(mneme_llama_fill_memory_options(made.adapter.get(), 0, &rows), MNEME_OK);
  mneme_memory* memory = nullptr;
  EXPECT_EQ(mneme_memory_create(store.get(), "m", mneme_llama_get_card(made.adapter.get()), &rows, &memory), MNEME_OK);
  EXPECT_EQ(mneme_llama_set_memory(made.adapter.get(), 0, memory, MNEME_LLAMA_MODE_APPEND), MNEME_OK);
  std::vector<llama_token> tokens = TextTokens(Smol(), 0, 5 * 64);
  std::vector<int8_t> all(64, 1);
  for (size_t begin = 0; begin < tokens.size(); begin += 64) {
    llama_batch batch = llama_batch_get_one(tokens.data() + begin, 64);
    batch.logits = all.data();
    EXPECT_EQ(mneme_llama_decode(made.adapter.get(), batch), MNEME_OK) << mneme_llama_last_error();
  }
  *next_position = mneme_llama_get_next_position(made.adapter.get(), 0);
  std::vector<std::vector<float>> result;
  for (int32_t i = 0; i < 64; ++i) {
    const std::span<const float> logits = PlainLogits(made.context.get(), i);
    result.emplace_back(logits.begin(), logits.end());
  }
  EXPECT_EQ(mneme_memory_close(memory), MNEME_OK);
  return result;
}

double MeanDivergence(const std::vector<std::vector<float>>& expected, const std::vector<std::vector<float>>& actual) {
  Distance distance;
  for (size_t i = 0; i < expected.size(); ++i) distance.Add(expected[i], actual[i], 0);
  return distance.MeanDivergence();
}

TEST(AdapterTest, PositionsMayStartAgain) {
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  llama_pos next = 0;
  const auto running = Read(options, &next);
  EXPECT_EQ(next, 5 * 64);
  options.restart_beyond = 1;
  const auto restarted = Read(options, &next);
  EXPECT_EQ(next, 2 * 64);
  const double divergence = MeanDivergence(running, restarted);
  std::cout << "mean KL " << divergence << "\n";
  EXPECT_LE(divergence, 1e-2);  // cached f16 keys were turned once more, and see Dequantised
}

TEST(AdapterTest, MemoryChangesWhatIsPredicted) {
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  llama_pos next = 0;
  const auto with = Read(options, &next);
  EXPECT_EQ(with, Read(options, &next));
  options.fusion = MNEME_FUSION_LOCAL_ONLY;
  EXPECT_GT(MeanDivergence(with, Read(options, &next)), 2e-2);
}

TEST(AdapterTest, EveryPolicyRuns) {
  for (const int32_t policy : {MNEME_POSITION_AS_STORED, MNEME_POSITION_WINDOW_START, MNEME_POSITION_CLAMPED}) {
    mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
    options.position_policy = policy;
    options.distance = 128;
    llama_pos next = 0;
    for (const std::vector<float>& logits : Read(options, &next)) {
      for (const float logit : logits) ASSERT_TRUE(std::isfinite(logit)) << policy;
    }
  }
}

TEST(AdapterTest, OnlyChosenLayersHaveAMemory) {
  const std::vector<int32_t> layers = {3, 20};
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.layers = layers.data();
  options.n_layers = layers.size();
  llama_pos next = 0;
  Read(options, &next);
  options.window = 64;
  const Made made = Make(options);
  const int32_t* chosen = nullptr;
  ASSERT_EQ(mneme_llama_get_layers(made.adapter.get(), &chosen), 2u);
  EXPECT_EQ(chosen[1], 20);
}

TEST(AdapterTest, SizesOfMemoriesLeaveRoomForTheWindow) {
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.window = 64;
  const Made made = Make(options);
  mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
  ASSERT_EQ(mneme_llama_fill_memory_options(made.adapter.get(), 1000, &rows), MNEME_OK);
  EXPECT_EQ(rows.max_tokens, 1064);
  EXPECT_EQ(rows.pinned_tokens, 16);
  EXPECT_EQ(rows.keys_rotated, 0);
  EXPECT_EQ(mneme_llama_fill_memory_options(made.adapter.get(), 15, &rows), MNEME_STATUS_INVALID_ARGUMENT);
  EXPECT_THAT(mneme_llama_last_error(), HasSubstr("16 pinned"));
}

TEST(AdapterTest, ZeroIsTheDefaultOfEveryOption) {
  mneme_llama_options options;
  std::memset(&options, 0, sizeof(options));
  options.struct_size = sizeof(options);
  const mneme_llama_options init = MNEME_LLAMA_OPTIONS_INIT;
  EXPECT_EQ(std::memcmp(&options, &init, sizeof(options)), 0);
  llama_pos next = 0;
  const auto by_default = Read(options, &next);
  options.position_policy = MNEME_POSITION_FIXED_DISTANCE;
  options.distance = 2048;
  options.top_k = 32;
  options.fusion = MNEME_FUSION_JOINT;
  options.decay_beyond = 1;
  options.pinned_tokens = 16;
  options.restart_beyond = 65536;
  EXPECT_EQ(Read(options, &next), by_default);
}

TEST(AdapterTest, NoTokensArePinnedIfTheHostSaysSo) {
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.window = 64;
  options.pinned_tokens = -1;
  const Made made = Make(options);
  mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
  ASSERT_EQ(mneme_llama_fill_memory_options(made.adapter.get(), 1000, &rows), MNEME_OK);
  EXPECT_EQ(rows.pinned_tokens, 0);
}

TEST(AdapterTest, CountsItsWork) {
  ModelSettings settings = SettingsFor(SmolPath());
  settings.window = 64;
  Session session(Smol(), settings);
  const TemporaryFolder folder;
  const Store store(folder.path(), 2);
  const Memory memory(store, "m", session, /*create=*/true, 0, "f16");
  const std::vector<llama_token> tokens = TextTokens(Smol(), 0, 256);
  std::vector<int64_t> commits;
  const IngestTimes times = Ingest(session, memory, tokens, "m", MNEME_DURABILITY_BUFFERED,
                                   [&](int64_t durable) { commits.push_back(durable); });
  EXPECT_EQ(commits, (std::vector<int64_t>{64, 128, 192, 256}));
  EXPECT_GT(times.model, 0.0);
  EXPECT_GT(times.adapter, 0.0);
  EXPECT_GT(times.append, 0.0);
  EXPECT_LE(times.model + times.adapter + times.append, times.total * 1.01);
  mneme_llama_stats stats = MNEME_LLAMA_STATS_INIT;
  ASSERT_EQ(mneme_llama_get_stats(session.adapter(), &stats), MNEME_OK);
  EXPECT_EQ(stats.tokens, 256);
  session.Detach(0);
}

}  // namespace
}  // namespace mneme::llama
