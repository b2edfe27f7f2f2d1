// SPDX-License-Identifier: Apache-2.0
// A sequence that gets its window back from the store goes on as if it had never ended; and a sequence goes back.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/src/window_state.h"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kWindow = 64;
constexpr int64_t kRead = 300;
constexpr int kAnswer = 16;  // short enough that the window does not slide meanwhile

ModelSettings Settings(const std::string& path) {
  ModelSettings settings = SettingsFor(path);
  settings.window = kWindow;
  return settings;
}

void Read(Session& session, std::span<const llama_token> tokens) {
  for (size_t begin = 0; begin < tokens.size(); begin += kWindow) {
    session.Decode(tokens.subspan(begin, std::min<size_t>(kWindow, tokens.size() - begin)), /*all_logits=*/false);
  }
}

// The likeliest continuation after `next` was decoded.
std::vector<llama_token> Answer(Session& session, llama_token next) {
  std::vector<llama_token> answer;
  for (int i = 0; i < kAnswer; ++i) {
    session.Decode(std::span(&next, 1), /*all_logits=*/false);
    const std::span<const float> logits = session.Logits(-1);
    next = static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    answer.push_back(next);
  }
  return answer;
}

// A memory of the text's beginning with its window, in a store of its own.
class Kept {
 public:
  Kept(llama_model* model, const ModelSettings& settings)
      : model_(model), settings_(settings), tokens_(TextTokens(model, 0, kRead + 1)) {
    Session session(model_, settings_);
    const Store store(path(), 2);
    const Memory memory(store, "m", session, /*create=*/true, 0, "f16");
    session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
    Read(session, std::span(tokens_).first(kRead));
    CheckAdapter(mneme_llama_save_window(session.adapter(), 0));
    CheckEngine(mneme_memory_commit(memory.get(), MNEME_DURABILITY_BUFFERED, nullptr));
    uninterrupted_ = Answer(session, tokens_[kRead]);
    session.Detach(0);  // the answer is not committed
  }

  std::string path() const { return folder_.path() + "/store"; }
  const std::vector<llama_token>& uninterrupted() const { return uninterrupted_; }
  llama_token next() const { return tokens_[kRead]; }
  const std::vector<llama_token>& tokens() const { return tokens_; }
  llama_model* model() const { return model_; }
  const ModelSettings& settings() const { return settings_; }

 private:
  llama_model* const model_;
  const ModelSettings settings_;
  const TemporaryFolder folder_;
  const std::vector<llama_token> tokens_;
  std::vector<llama_token> uninterrupted_;
};

void ExpectGoesOn(const Kept& kept, mneme_llama_mode mode) {
  Session session(kept.model(), kept.settings());
  const Store store(kept.path(), 2);
  const Memory memory(store, "m", session, /*create=*/false, 0, "");
  session.Attach(0, memory.get(), mode);
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(mneme_llama_restore_window(session.adapter(), 0), MNEME_OK) << mneme_llama_last_error();
  const auto restored = std::chrono::steady_clock::now();
  EXPECT_EQ(Answer(session, kept.next()), kept.uninterrupted());
  std::cout << "restored in " << std::chrono::duration<double, std::milli>(restored - start).count() << " ms, "
            << static_cast<double>(memory.Info().attachment_bytes) / 1e6 << " MB\n";
  session.Detach(0);
}

TEST(WindowTest, ARestoredSequenceGoesOnTokenForToken) {
  const Kept kept(Smol(), Settings(SmolPath()));
  ExpectGoesOn(kept, MNEME_LLAMA_MODE_READ);
  ExpectGoesOn(kept, MNEME_LLAMA_MODE_APPEND);
}

TEST(WindowTest, SoDoesOneWithSlidingLayersAndOneWithKeysAsStored) {
  ExpectGoesOn(Kept(Gemma(), Settings(GemmaPath())), MNEME_LLAMA_MODE_APPEND);
  ModelSettings settings = Settings(SmolPath());
  settings.policy = "as-stored";
  ExpectGoesOn(Kept(Smol(), settings), MNEME_LLAMA_MODE_APPEND);
}

// What cannot be restored is refused with the reason, and the window can be decoded again after it.
TEST(WindowTest, AForeignStateIsRefusedAndTheWindowIsDecodedAgain) {
  const Kept kept(Smol(), Settings(SmolPath()));
  Session session(Smol(), kept.settings());
  const Store store(kept.path(), 2);
  const Memory memory(store, "m", session, /*create=*/false, 0, "");
  size_t size = 0;
  CheckEngine(mneme_memory_get_attachment(memory.get(), kWindowAttachment, nullptr, 0, &size, nullptr));
  std::string good(size, '\0');
  CheckEngine(mneme_memory_get_attachment(memory.get(), kWindowAttachment, good.data(), size, nullptr, nullptr));
  WindowState state;
  ASSERT_TRUE(DecodeWindowState(good, &state).ok());
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);

  const auto refuses = [&](const std::string& bytes, int64_t tokens, mneme_status status, const char* reason) {
    CheckEngine(mneme_memory_set_attachment(memory.get(), kWindowAttachment, bytes.data(), bytes.size(), tokens));
    EXPECT_EQ(mneme_llama_restore_window(session.adapter(), 0), status);
    EXPECT_THAT(std::string(mneme_llama_last_error()), HasSubstr(reason));
    EXPECT_LT(llama_memory_seq_pos_max(llama_get_memory(session.context()), 0), 0);
  };
  refuses("something else", kRead, MNEME_STATUS_DATA_LOSS, "none that this adapter writes");
  refuses(good, kRead - 1, MNEME_STATUS_FAILED_PRECONDITION, "the memory at token 300");
  WindowState other = state;
  other.settings += ", other";
  refuses(EncodeWindowState(other), kRead, MNEME_STATUS_FAILED_PRECONDITION, "was made by");
  other = state;
  other.cells.remove_suffix(other.cells.size() / 2);
  refuses(EncodeWindowState(other), kRead, MNEME_STATUS_FAILED_PRECONDITION, "does not take");
  other = state;
  other.first_position -= 1;
  refuses(EncodeWindowState(other), kRead, MNEME_STATUS_FAILED_PRECONDITION, "does not take");
  CheckEngine(mneme_memory_set_attachment(memory.get(), kWindowAttachment, nullptr, 0, 0));
  EXPECT_EQ(mneme_llama_restore_window(session.adapter(), 0), MNEME_STATUS_NOT_FOUND);

  int64_t shown = 0;
  const auto show = [](void* context, int64_t done, int64_t) {
    *static_cast<int64_t*>(context) = done;
    return 0;
  };
  ASSERT_EQ(mneme_llama_resume(session.adapter(), 0, kWindow, show, &shown), MNEME_OK) << mneme_llama_last_error();
  EXPECT_EQ(shown, kWindow);
  EXPECT_EQ(Answer(session, kept.next()).size(), static_cast<size_t>(kAnswer));
  session.Detach(0);
}

TEST(WindowTest, ACancelledResumeLeavesTheWindowEmpty) {
  const Kept kept(Smol(), Settings(SmolPath()));
  Session session(Smol(), kept.settings());
  const Store store(kept.path(), 2);
  const Memory memory(store, "m", session, /*create=*/false, 0, "");
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  const auto cancel = [](void*, int64_t, int64_t) { return 1; };
  EXPECT_EQ(mneme_llama_resume(session.adapter(), 0, kWindow, cancel, nullptr), MNEME_STATUS_CANCELLED);
  EXPECT_EQ(mneme_llama_restore_window(session.adapter(), 0), MNEME_OK) << mneme_llama_last_error();
  EXPECT_EQ(Answer(session, kept.next()), kept.uninterrupted());
  session.Detach(0);
}

// Within the window the same tokens come again; before it the window has to be decoded.
TEST(WindowTest, ARewoundSequenceSaysTheSameAgain) {
  const Kept kept(Smol(), Settings(SmolPath()));
  Session session(Smol(), kept.settings());
  const Store store(kept.path(), 2);
  const Memory memory(store, "m", session, /*create=*/false, 0, "");
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  ASSERT_EQ(mneme_llama_restore_window(session.adapter(), 0), MNEME_OK) << mneme_llama_last_error();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(Answer(session, kept.next()), kept.uninterrupted()) << "attempt " << i;
    EXPECT_EQ(memory.Info().next_token, kRead + kAnswer);
    ASSERT_EQ(mneme_llama_rewind(session.adapter(), 0, kRead), MNEME_OK) << mneme_llama_last_error();
    EXPECT_EQ(memory.Info().next_token, kRead);
  }
  EXPECT_EQ(mneme_llama_rewind(session.adapter(), 0, kRead + 1), MNEME_STATUS_OUT_OF_RANGE);
  EXPECT_EQ(mneme_llama_rewind(session.adapter(), 0, -1), MNEME_STATUS_OUT_OF_RANGE);
  EXPECT_EQ(mneme_llama_rewind(session.adapter(), 7, 0), MNEME_STATUS_FAILED_PRECONDITION);

  ASSERT_EQ(mneme_llama_rewind(session.adapter(), 0, 100), MNEME_OK) << mneme_llama_last_error();
  EXPECT_EQ(memory.Info().next_token, 100);
  EXPECT_EQ(mneme_llama_restore_window(session.adapter(), 0), MNEME_STATUS_NOT_FOUND) << "it went with its tokens";
  ASSERT_EQ(mneme_llama_resume(session.adapter(), 0, kWindow, nullptr, nullptr), MNEME_OK) << mneme_llama_last_error();
  Read(session, std::span(kept.tokens()).subspan(100, 50));
  EXPECT_EQ(memory.Info().next_token, 150);
  session.Detach(0);
}

TEST(WindowTest, AReaderRewindsWhatItHasDecoded) {
  const Kept kept(Smol(), Settings(SmolPath()));
  Session session(Smol(), kept.settings());
  const Store store(kept.path(), 2, StoreUse::kRead);
  const Memory memory(store, "m", session, /*create=*/false, 0, "");
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_READ);
  ASSERT_EQ(mneme_llama_restore_window(session.adapter(), 0), MNEME_OK) << mneme_llama_last_error();
  EXPECT_EQ(mneme_llama_save_window(session.adapter(), 0), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_EQ(Answer(session, kept.next()), kept.uninterrupted());
  ASSERT_EQ(mneme_llama_rewind(session.adapter(), 0, kRead), MNEME_OK) << mneme_llama_last_error();
  EXPECT_EQ(Answer(session, kept.next()), kept.uninterrupted());
  EXPECT_EQ(mneme_llama_rewind(session.adapter(), 0, kRead - 1), MNEME_STATUS_OUT_OF_RANGE);
  session.Detach(0);
}

}  // namespace
}  // namespace mneme::llama
