// SPDX-License-Identifier: Apache-2.0
// The adapter's two identities on real weights: with nothing to retrieve it computes what llama.cpp computes, and with
// everything retrieved it computes what llama.cpp computes with a window that holds everything.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {
namespace {

// Listens in front of the adapter's own callback and compares each attention output before and after it.
struct Comparison {
  ggml_backend_sched_eval_callback adapter = nullptr;
  void* adapter_data = nullptr;
  std::map<std::string, double> worst;  // by node: largest difference over the largest value
  int64_t outputs = 0;
  int64_t left_out = 0;  // attention nodes that llama.cpp would not have computed

  // The adapter leaves out what it replaces; here it is needed.
  bool Ask(ggml_tensor* node) {
    const bool computed = (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0;
    const bool wanted = adapter(node, true, adapter_data);
    if (computed && (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
      ++left_out;
      node->flags |= GGML_TENSOR_FLAG_COMPUTE;
    }
    return wanted;
  }

  static bool OnNode(ggml_tensor* node, bool ask, void* data) {
    auto* self = static_cast<Comparison*>(data);
    if (ask) return self->Ask(node);
    if (std::strncmp(node->name, "kqv_out-", 8) != 0) return self->adapter(node, ask, self->adapter_data);
    ++self->outputs;
    auto* values = static_cast<float*>(node->data);
    const auto size = static_cast<size_t>(ggml_nelements(node));
    const std::vector<float> own(values, values + size);
    const bool go_on = self->adapter(node, ask, self->adapter_data);
    double largest = 0.0;
    double difference = 0.0;
    for (size_t i = 0; i < size; ++i) {
      largest = std::max(largest, static_cast<double>(std::fabs(own[i])));
      difference = std::max(difference, static_cast<double>(std::fabs(own[i] - values[i])));
    }
    double& worst = self->worst[node->name];
    worst = std::max(worst, difference / largest);
    return go_on;
  }
};

// With nothing of the memory visible, the adapter's local attention against llama.cpp's, layer by layer; also where the
// window's cells are out of order and where a batch runs in parts of `part` tokens. Differences up to `bound` times the
// largest value of the layer's output.
void ExpectOwnAttention(llama_model* model, const std::string& path, uint32_t part, double bound, size_t layers) {
  mneme_llama_options options = MNEME_LLAMA_OPTIONS_INIT;
  options.model_path = path.c_str();
  options.always_overwrite = 1;
  options.window = 64;
  options.fusion = MNEME_FUSION_JOINT;
  mneme_llama* made = nullptr;
  ASSERT_EQ(mneme_llama_create(model, &options, &made), MNEME_OK) << mneme_llama_last_error();
  const AdapterPtr adapter(made);
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 256;
  params.n_batch = 128;
  params.n_ubatch = part;
  params.n_threads = params.n_threads_batch = 2;
  params.kv_unified = true;
  ASSERT_EQ(mneme_llama_prepare(made, &params), MNEME_OK) << mneme_llama_last_error();
  Comparison comparison;
  comparison.adapter = params.cb_eval;
  comparison.adapter_data = params.cb_eval_user_data;
  params.cb_eval = &Comparison::OnNode;
  params.cb_eval_user_data = &comparison;
  const ContextPtr context(llama_init_from_model(model, params));
  ASSERT_EQ(mneme_llama_bind(made, context.get()), MNEME_OK);

  const TemporaryFolder folder;
  const Store store(folder.path(), 2);
  mneme_memory_options rows = MNEME_MEMORY_OPTIONS_INIT;
  ASSERT_EQ(mneme_llama_fill_memory_options(made, 0, &rows), MNEME_OK);
  mneme_memory* memory = nullptr;
  ASSERT_EQ(mneme_memory_create(store.get(), "empty", mneme_llama_get_card(made), &rows, &memory), MNEME_OK);
  // A reader of an empty memory: however far its window slides, there is nothing to retrieve.
  ASSERT_EQ(mneme_llama_set_memory(made, 0, memory, MNEME_LLAMA_MODE_READ), MNEME_OK) << mneme_llama_last_error();
  const std::vector<llama_token> tokens = TextTokens(model, 0, 128 + 6 * 64);
  int64_t checked = 0;  // outputs of the first batch, in which the adapter checks itself and leaves nothing out
  for (size_t begin = 0; begin < tokens.size();) {
    const size_t count = std::min<size_t>(begin == 0 ? 128 : 64, tokens.size() - begin);
    Batch batch;
    for (size_t i = 0; i < count; ++i) batch.Add(tokens[begin + i], 0, i + 1 == count);
    ASSERT_EQ(mneme_llama_decode(made, batch.get()), MNEME_OK) << mneme_llama_last_error();
    if (begin == 0) checked = comparison.outputs;
    begin += count;
  }
  EXPECT_EQ(mneme_llama_set_memory(made, 0, nullptr, MNEME_LLAMA_MODE_READ), MNEME_OK);
  EXPECT_EQ(mneme_memory_close(memory), MNEME_OK);

  EXPECT_EQ(comparison.left_out, comparison.outputs - checked);
  double worst = 0.0;
  size_t compared = 0;
  const int32_t* chosen = nullptr;
  ASSERT_EQ(mneme_llama_get_layers(made, &chosen), layers);
  for (size_t i = 0; i < layers; ++i) {
    const auto found = comparison.worst.find("kqv_out-" + std::to_string(chosen[i]));
    ASSERT_NE(found, comparison.worst.end());
    EXPECT_LE(found->second, bound) << found->first;
    EXPECT_GT(found->second, 0.0) << found->first << " was not replaced";
    worst = std::max(worst, found->second);
    ++compared;
  }
  std::cout << compared << " layers, largest difference " << worst << " of the largest value\n";
}

TEST(IdentityTest, AnEmptyMemoryIsTheModelsOwnAttention) {
  ExpectOwnAttention(Smol(), SmolPath(), /*part=*/64, /*bound=*/1e-5, /*layers=*/30);
}

// With fewer than 64 tokens at once llama.cpp rounds queries to f16 and accumulates values in f16.
TEST(IdentityTest, AnEmptyMemoryIsTheModelsOwnAttentionInSmallParts) {
  ExpectOwnAttention(Smol(), SmolPath(), /*part=*/24, /*bound=*/1.5e-2, /*layers=*/30);
}

TEST(IdentityTest, AnEmptyMemoryIsGemmasOwnAttention) {
  ExpectOwnAttention(Gemma(), GemmaPath(), /*part=*/64, /*bound=*/1e-5, /*layers=*/3);
}

// Memory of everything with k of everything, rotated keys as stored: the window of 512 to 1,024 tokens and the memory
// together are llama.cpp's own context. Blocks of `batch` tokens; compares the tokens from `scored` on.
Distance AgainstNative(llama_model* model, const std::string& path, size_t total, size_t scored, size_t batch) {
  ModelSettings settings = SettingsFor(path);
  settings.policy = "as-stored";
  settings.top_k = static_cast<int64_t>(total);
  Session session(model, settings);
  const TemporaryFolder folder;
  const Store store(folder.path(), 2);
  const Memory memory(store, "everything", session, /*create=*/true, 0, "f16");
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  const ContextPtr native = PlainContext(model, static_cast<uint32_t>(total), static_cast<uint32_t>(batch));
  const std::vector<llama_token> tokens = TextTokens(model, 0, static_cast<int64_t>(total) + 1);
  Distance distance;
  for (size_t begin = 0; begin < total; begin += batch) {
    const auto block = std::span(tokens).subspan(begin, std::min(batch, total - begin));
    DecodePlain(native.get(), block);
    session.Decode(block, /*all_logits=*/true);
    for (size_t i = 0; i < block.size() && begin >= scored; ++i) {
      const auto at = static_cast<int32_t>(i);
      distance.Add(PlainLogits(native.get(), at), session.Logits(at), tokens[begin + i + 1]);
    }
  }
  const mneme_memory_info info = memory.Info();
  EXPECT_EQ(info.next_token, static_cast<int64_t>(total));
  session.Detach(0);
  std::cout << distance.positions << " positions: mean KL " << distance.MeanDivergence() << ", same argmax "
            << 100 * distance.SameArgmax() << " %, difference of nll " << distance.MeanNllDifference() << "\n";
  return distance;
}

void ExpectNative(const Distance& distance) {
  EXPECT_GE(distance.positions, 512);
  EXPECT_LE(distance.MeanDivergence(), 1e-3);
  EXPECT_GE(distance.SameArgmax(), 0.99);
  EXPECT_LE(std::fabs(distance.MeanNllDifference()), 0.005);
}

TEST(IdentityTest, EverythingRetrievedIsTheNativeContext) {
  const Dequantised smol(SmolPath());
  ExpectNative(AgainstNative(smol.model(), smol.path(), /*total=*/1536, /*scored=*/1024, /*batch=*/256));
}

TEST(IdentityTest, EverythingRetrievedIsGemmasNativeContext) {
  const Dequantised gemma(GemmaPath());
  ExpectNative(AgainstNative(gemma.model(), gemma.path(), /*total=*/1536, /*scored=*/1024, /*batch=*/128));
}

// On the weights as they come, as near as llama.cpp is to itself.
TEST(IdentityTest, EverythingRetrievedIsTheNativeContextOfQuantisedWeights) {
  const Distance distance = AgainstNative(Smol(), SmolPath(), /*total=*/1536, /*scored=*/1024, /*batch=*/256);
  EXPECT_LE(distance.MeanDivergence(), 4e-3);
  EXPECT_LE(std::fabs(distance.MeanNllDifference()), 0.005);
}

// Of a model that is fetched on demand (scripts/fetch-models --qwen).
TEST(IdentityTest, EverythingRetrievedIsQwensNativeContext) {
  const std::string path = MNEME_TEST_MODELS "/Qwen2.5-Coder-0.5B-Instruct.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "there is no " << path;
  const ModelPtr model = LoadModel(path);
  const Distance distance = AgainstNative(model.get(), path, /*total=*/1280, /*scored=*/1024, /*batch=*/256);
  EXPECT_LE(distance.MeanDivergence(), 4e-3);
  EXPECT_LE(std::fabs(distance.MeanNllDifference()), 0.005);
}

}  // namespace
}  // namespace mneme::llama
