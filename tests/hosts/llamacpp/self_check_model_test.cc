// SPDX-License-Identifier: Apache-2.0
// On real models: captured rows give the model's own attention, and an output that they do not give is refused.
#include <cstring>
#include <filesystem>
#include <iostream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

mneme_llama_stats Stats(const Session& session) {
  mneme_llama_stats stats = MNEME_LLAMA_STATS_INIT;
  CheckAdapter(mneme_llama_get_stats(session.adapter(), &stats));
  return stats;
}

void ExpectChecked(llama_model* model, const ModelSettings& settings) {
  Session session(model, settings);
  const TemporaryFolder folder;
  const Store store(folder.path() + "/store", 2);
  const Memory memory(store, "m", session, /*create=*/true, 0, "f16");
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  session.Decode(TextTokens(model, 0, 4), /*all_logits=*/false);
  EXPECT_EQ(Stats(session).checked_layers, 0) << "four tokens tell too little";
  session.Detach(0);
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);  // a new window, and rows of the memory are visible
  session.Decode(TextTokens(model, 4, 40), /*all_logits=*/false);
  const mneme_llama_stats stats = Stats(session);
  EXPECT_EQ(stats.checked_layers, static_cast<int64_t>(mneme_llama_get_layers(session.adapter(), nullptr)));
  EXPECT_GT(stats.largest_difference, 0.0);
  EXPECT_LT(stats.largest_difference, 0.005);
  std::cout << stats.checked_layers << " layers, largest difference " << stats.largest_difference << "\n";
  session.Detach(0);
}

TEST(SelfCheckModelTest, EveryLayerIsChecked) {
  ExpectChecked(Smol(), SettingsFor(SmolPath()));
  ExpectChecked(Gemma(), SettingsFor(GemmaPath()));
  ModelSettings settings = SettingsFor(SmolPath());
  settings.policy = "as-stored";
  ExpectChecked(Smol(), settings);
}

// Of the models that are fetched on demand (scripts/fetch-models --qwen).
TEST(SelfCheckModelTest, EveryLayerOfQwenIsChecked) {
  const std::string path = MNEME_TEST_MODELS "/Qwen2.5-Coder-0.5B-Instruct.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "there is no " << path;
  const ModelPtr model = LoadModel(path);
  ExpectChecked(model.get(), SettingsFor(path));
}

// Changes the attention output of layer 3 before the adapter sees it.
struct Disturber {
  ggml_backend_sched_eval_callback adapter = nullptr;
  void* adapter_data = nullptr;

  static bool OnNode(ggml_tensor* node, bool ask, void* data) {
    auto* self = static_cast<Disturber*>(data);
    if (!ask && std::strcmp(node->name, "kqv_out-3") == 0) {
      auto* values = static_cast<float*>(node->data);
      for (int64_t i = 0; i < ggml_nelements(node); ++i) values[i] *= 1.1f;
    }
    return self->adapter(node, ask, self->adapter_data);
  }
};

TEST(SelfCheckModelTest, RefusesAGraphThatComputesSomethingElse) {
  const std::string path = SmolPath();
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.model_path = path.c_str();
  mneme_llama* made = nullptr;
  ASSERT_EQ(mneme_llama_create(Smol(), &options, &made), MNEME_OK) << mneme_llama_last_error();
  const AdapterPtr adapter(made);
  llama_context_params params = WindowParams(SettingsFor(path));
  ASSERT_EQ(mneme_llama_prepare(made, &params), MNEME_OK) << mneme_llama_last_error();
  Disturber disturber{params.cb_eval, params.cb_eval_user_data};
  params.cb_eval = &Disturber::OnNode;
  params.cb_eval_user_data = &disturber;
  const ContextPtr context = NewContext(Smol(), params);
  ASSERT_EQ(mneme_llama_bind(made, context.get()), MNEME_OK);
  const TemporaryFolder folder;
  const Store store(folder.path() + "/store", 2);
  mneme_memory* memory = nullptr;
  mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
  ASSERT_EQ(mneme_llama_fill_memory_options(made, 0, &rows), MNEME_OK);
  ASSERT_EQ(mneme_memory_create(store.get(), "m", mneme_llama_get_card(made), &rows, &memory), MNEME_OK);
  ASSERT_EQ(mneme_llama_set_memory(made, 0, memory, MNEME_LLAMA_MODE_APPEND), MNEME_OK);
  std::vector<llama_token> tokens = TextTokens(Smol(), 0, 20);
  EXPECT_EQ(mneme_llama_decode(made, llama_batch_get_one(tokens.data(), 20)), MNEME_STATUS_FAILED_PRECONDITION);
  EXPECT_THAT(std::string(mneme_llama_last_error()), HasSubstr("layer 3"));
  EXPECT_THAT(std::string(mneme_llama_last_error()), HasSubstr("differs from the model's own"));
  mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
  ASSERT_EQ(mneme_memory_get_info(memory, &info), MNEME_OK);
  EXPECT_EQ(info.next_token, 0);
  EXPECT_EQ(mneme_llama_set_memory(made, 0, nullptr, MNEME_LLAMA_MODE_READ), MNEME_OK);
  EXPECT_EQ(mneme_memory_close(memory), MNEME_OK);
}

}  // namespace
}  // namespace mneme::llama
