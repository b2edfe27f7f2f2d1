// SPDX-License-Identifier: Apache-2.0
// Tiny models of many architectures: window and memory together are llama.cpp's own full attention, and graphs that
// cannot be served are refused with layer and reason.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/main/session.h"
#include "tests/hosts/llamacpp/plain.h"
#include "tests/hosts/llamacpp/tiny_model.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kWindow = 64;
constexpr int64_t kRead = 5 * kWindow;  // tokens that are read in blocks of the window
constexpr int64_t kSingle = 8;          // that follow one by one

std::vector<llama_token> RandomTokens() {
  std::mt19937 random(3);
  std::vector<llama_token> tokens(kRead + kSingle);
  for (llama_token& token : tokens) token = static_cast<llama_token>(random() % TinyModel::kVocabulary);
  return tokens;
}

// Of the logits, as a share of the largest of them.
struct Errors {
  double blocks = 0.0;
  double single = 0.0;
  mneme_llama_stats stats = MNEME_LLAMA_STATS_INIT;
};

double Difference(std::span<const float> expected, std::span<const float> actual) {
  double largest = 0.0;
  double difference = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(expected[i])));
    difference = std::max(difference, std::fabs(static_cast<double>(expected[i]) - static_cast<double>(actual[i])));
  }
  return std::isfinite(difference) ? difference / largest : INFINITY;
}

ModelSettings SettingsOf(const std::string& path, const std::string& policy) {
  ModelSettings settings;
  settings.model = path;
  settings.threads = 1;
  settings.policy = policy;
  settings.distance = 1e6f;  // "clamped" leaves rows where they are
  settings.top_k = kRead + kSingle;
  settings.window = kWindow;
  return settings;
}

// Decodes the same tokens with the native context and with a window and a memory of everything.
Errors AgainstNative(const std::string& path, const std::string& policy) {
  const ModelPtr model = LoadModel(path);
  const ContextPtr native = PlainContext(model.get(), 512, kWindow);
  Session session(model.get(), SettingsOf(path, policy));
  const TemporaryFolder folder;
  const Store store(folder.path() + "/store", 1);
  const Memory memory(store, "m", session, /*create=*/true, 0, "f16");
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  const std::vector<llama_token> tokens = RandomTokens();
  Errors errors;
  for (int64_t begin = 0; begin < kRead + kSingle;) {
    const int64_t count = begin < kRead ? kWindow : 1;
    const auto block = std::span(tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
    DecodePlain(native.get(), block);
    session.Decode(block, /*all_logits=*/true);
    double& worst = begin < kRead ? errors.blocks : errors.single;
    for (int32_t i = 0; i < count; ++i) {
      worst = std::max(worst, Difference(PlainLogits(native.get(), i), session.Logits(i)));
    }
    begin += count;
  }
  CheckAdapter(mneme_llama_get_stats(session.adapter(), &errors.stats));
  EXPECT_EQ(memory.Info().next_token, kRead + kSingle);
  session.Detach(0);
  return errors;
}

class ServedTest : public ::testing::TestWithParam<TinyArchitecture> {};

TEST_P(ServedTest, WindowAndMemoryAreFullAttention) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/tiny.gguf";
  GetParam().make()->Write(path);
  for (const char* policy : {"as-stored", "clamped"}) {
    const Errors errors = AgainstNative(path, policy);
    // The cache rounds rotated rows to f16, a memory of unrotated ones these: two roundings of the same rows.
    EXPECT_LE(errors.blocks, std::string(policy) == "clamped" ? 1e-2 : 2e-3) << policy;
    // With fewer than 64 tokens at once llama.cpp rounds queries to f16 and accumulates values in f16.
    EXPECT_LE(errors.single, 1e-2) << policy;
    EXPECT_GT(errors.stats.checked_layers, 0) << policy;
    EXPECT_LE(errors.stats.largest_difference, 2e-4) << policy;
    std::printf("%-24s %-10s layers %2d  self-check %.6f  logits %.6f, single tokens %.6f\n", GetParam().name.c_str(),
                policy, static_cast<int>(errors.stats.checked_layers), errors.stats.largest_difference, errors.blocks,
                errors.single);
  }
}

constexpr auto kTestName = [](const auto& info) {
  std::string name = info.param.name;
  std::erase_if(name, [](char letter) { return std::isalnum(static_cast<unsigned char>(letter)) == 0; });
  return name;
};

INSTANTIATE_TEST_SUITE_P(Architectures, ServedTest, ::testing::ValuesIn(ServedArchitectures()), kTestName);

class RefusedTest : public ::testing::TestWithParam<RefusedArchitecture> {};

TEST_P(RefusedTest, WithLayerAndReason) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/tiny.gguf";
  GetParam().make()->Write(path);
  const ModelPtr model = LoadModel(path);
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.model_path = path.c_str();
  mneme_llama* adapter = nullptr;
  EXPECT_EQ(mneme_llama_create(model.get(), &options, &adapter), MNEME_STATUS_UNIMPLEMENTED);
  EXPECT_EQ(adapter, nullptr);
  EXPECT_THAT(std::string(mneme_llama_last_error()), HasSubstr(GetParam().layer));
  EXPECT_THAT(std::string(mneme_llama_last_error()), HasSubstr(GetParam().reason));
  mneme_llama_release(adapter);
}

INSTANTIATE_TEST_SUITE_P(Architectures, RefusedTest, ::testing::ValuesIn(RefusedArchitectures()), kTestName);

// llama.cpp shifts the cached keys of layers without rotary embedding, too, so positions must not start again.
TEST(MixedLayersTest, PositionsNeverStartAgain) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/tiny.gguf";
  const std::vector<TinyArchitecture> served = ServedArchitectures();
  for (const char* name : {"smollm3", "llama"}) {
    const auto found = std::find_if(served.begin(), served.end(), [&](const auto& one) { return one.name == name; });
    ASSERT_NE(found, served.end());
    found->make()->Write(path);
    const ModelPtr model = LoadModel(path);
    mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
    options.model_path = path.c_str();
    options.window = kWindow;
    options.restart_beyond = 2 * kWindow;
    mneme_llama* made = nullptr;
    ASSERT_EQ(mneme_llama_create(model.get(), &options, &made), MNEME_OK) << mneme_llama_last_error();
    const AdapterPtr adapter(made);
    llama_context_params params = WindowParams(SettingsOf(path, "fixed"));
    ASSERT_EQ(mneme_llama_prepare(made, &params), MNEME_OK) << mneme_llama_last_error();
    const ContextPtr context = NewContext(model.get(), params);
    ASSERT_EQ(mneme_llama_bind(made, context.get()), MNEME_OK);
    const Store store(folder.path() + "/store", 1);
    mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
    ASSERT_EQ(mneme_llama_fill_memory_options(made, 0, &rows), MNEME_OK);
    mneme_memory* memory = nullptr;
    ASSERT_EQ(mneme_memory_create(store.get(), name, mneme_llama_get_card(made), &rows, &memory), MNEME_OK);
    ASSERT_EQ(mneme_llama_set_memory(made, 0, memory, MNEME_LLAMA_MODE_APPEND), MNEME_OK);
    std::vector<llama_token> tokens = RandomTokens();
    for (int64_t begin = 0; begin < kRead; begin += kWindow) {
      ASSERT_EQ(mneme_llama_decode(made, llama_batch_get_one(tokens.data() + begin, kWindow)), MNEME_OK)
          << mneme_llama_last_error();
    }
    EXPECT_EQ(mneme_llama_get_next_position(made, 0) == kRead, std::string(name) == "smollm3") << name;
    EXPECT_EQ(mneme_llama_set_memory(made, 0, nullptr, MNEME_LLAMA_MODE_READ), MNEME_OK);
    EXPECT_EQ(mneme_memory_close(memory), MNEME_OK);
  }
}

}  // namespace
}  // namespace mneme::llama
