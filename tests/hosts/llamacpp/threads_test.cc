// SPDX-License-Identifier: Apache-2.0
// A model's predictions are the same bit for bit whichever threads run the engine's tasks, and may be made on any
// thread.
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kBlock = 64;
constexpr int64_t kBlocks = 3;  // the first has left the window when the last is read
constexpr int64_t kSingle = 8;

using Logits = std::vector<std::vector<float>>;

ModelSettings Settings(const std::string& path) {
  ModelSettings settings = SettingsFor(path);
  settings.window = kBlock;
  return settings;
}

// Of the last block that is read, and of tokens one by one after it.
Logits Decode(llama_model* model, Session& session, const Store& store) {
  const Memory memory(store, "m", session, /*create=*/true, 0, "f16");
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  const std::vector<llama_token> tokens = TextTokens(model, 0, kBlocks * kBlock + kSingle);
  Logits logits;
  const auto keep = [&](int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
      const std::span<const float> one = session.Logits(i);
      logits.emplace_back(one.begin(), one.end());
    }
  };
  const std::span<const llama_token> text = tokens;
  for (int64_t block = 0; block < kBlocks; ++block) session.Decode(text.subspan(block * kBlock, kBlock), true);
  keep(kBlock);
  for (int64_t i = 0; i < kSingle; ++i) {
    session.Decode(text.subspan(kBlocks * kBlock + i, 1), true);
    keep(1);
  }
  session.Detach(0);
  return logits;
}

// On threads of the engine's own.
Logits DecodeOnOwn(llama_model* model, const ModelSettings& settings, int32_t engine_threads) {
  const TemporaryFolder folder;
  Session session(model, settings);
  const Store store(folder.path(), engine_threads);
  return Decode(model, session, store);
}

// On llama.cpp's. `shares`: whether the adapter knows it.
Logits DecodeOnShared(llama_model* model, const ModelSettings& settings, int32_t engine_threads, bool shares) {
  const TemporaryFolder folder;
  ModelSettings of_engine = settings;
  of_engine.threads = engine_threads;
  const ThreadsPtr threads = MakeThreads(of_engine);
  Session session(model, settings);
  if (shares) session.Share(threads);
  const Store store(folder.path(), threads);
  return Decode(model, session, store);
}

TEST(ThreadsTest, PredictionsAreTheSameOnAnyThreads) {
  const ModelSettings settings = Settings(SmolPath());
  const Logits alone = DecodeOnOwn(Smol(), settings, 1);
  ASSERT_EQ(alone.size(), static_cast<size_t>(kBlock + kSingle));
  EXPECT_EQ(alone, DecodeOnOwn(Smol(), settings, 2));
  EXPECT_EQ(alone, DecodeOnShared(Smol(), settings, 2, true));
  EXPECT_EQ(alone, DecodeOnShared(Smol(), settings, 3, true));
  EXPECT_EQ(alone, DecodeOnShared(Smol(), settings, 2, false));
}

TEST(ThreadsTest, PredictionsAreTheSameForLayersOfAnotherShape) {
  const ModelSettings settings = Settings(GemmaPath());
  EXPECT_EQ(DecodeOnOwn(Gemma(), settings, 1), DecodeOnShared(Gemma(), settings, 2, true));
}

// A server decodes on whatever thread a request comes in by.
TEST(ThreadsTest, AnotherThreadMayGoOn) {
  const TemporaryFolder folder;
  const ModelSettings settings = Settings(SmolPath());
  const ThreadsPtr threads = MakeThreads(settings);
  Session session(Smol(), settings);
  session.Share(threads);
  const Store store(folder.path(), threads);
  const Logits here = Decode(Smol(), session, store);
  Logits there;
  std::thread([&] {
    const TemporaryFolder other_folder;
    const Store other_store(other_folder.path(), threads);
    there = Decode(Smol(), session, other_store);
  }).join();
  EXPECT_EQ(here, there);
}

// Sessions that share threads may be called at the same time: one decode waits for the other.
TEST(ThreadsTest, TwoSessionsAtOnce) {
  const TemporaryFolder folder;
  const ModelSettings settings = Settings(SmolPath());
  const Logits expected = DecodeOnOwn(Smol(), settings, 1);
  const ThreadsPtr threads = MakeThreads(settings);
  Session first(Smol(), settings), second(Smol(), settings);
  first.Share(threads);
  second.Share(threads);
  const TemporaryFolder other_folder;
  const Store store(folder.path(), threads), other_store(other_folder.path(), threads);
  Logits other;
  std::thread thread([&] { other = Decode(Smol(), second, other_store); });
  const Logits one = Decode(Smol(), first, store);
  thread.join();
  EXPECT_EQ(one, expected);
  EXPECT_EQ(other, expected);
}

TEST(ThreadsTest, SharingComesAfterBinding) {
  const std::string path = SmolPath();
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.model_path = path.c_str();
  mneme_llama* made = nullptr;
  ASSERT_EQ(mneme_llama_create(Smol(), &options, &made), MNEME_OK);
  const AdapterPtr adapter(made);
  const ThreadsPtr threads = MakeThreads(Settings(path));
  EXPECT_EQ(mneme_llama_set_threads(made, threads.get()), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_THAT(mneme_llama_last_error(), HasSubstr("mneme_llama_bind"));
}

TEST(ThreadsTest, SharingCanEnd) {
  const ModelSettings settings = Settings(SmolPath());
  const TemporaryFolder folder;
  Session session(Smol(), settings);
  {
    const ThreadsPtr threads = MakeThreads(settings);
    session.Share(threads);
    ASSERT_EQ(mneme_llama_set_threads(session.adapter(), nullptr), MNEME_OK);
  }
  const Store store(folder.path(), 2);
  EXPECT_EQ(Decode(Smol(), session, store), DecodeOnOwn(Smol(), settings, 1));
}

}  // namespace
}  // namespace mneme::llama
