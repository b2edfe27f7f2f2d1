// SPDX-License-Identifier: Apache-2.0
// `mneme-llama record`: what it writes is what a memory of the same text stores and is searched with.
#include <sys/wait.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hosts/llamacpp/main/block_reader.h"
#include "tests/hosts/llamacpp/testing.h"
#include "tests/index/recorded_qk.h"

namespace mneme::llama {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kWindow = 128;
// Two blocks: up to here nothing of a memory is visible, so a model with a memory computes the same as without.
constexpr int64_t kRows = 200;
constexpr int64_t kQueries = 7;

struct Ended {
  int code;
  std::string output;
};

Ended RunRecord(const std::string& model, const std::string& arguments) {
  const std::string command = "'" MNEME_TEST_PROGRAM "' record --threads 2 --window " + std::to_string(kWindow) +
                              " --model '" + model + "' --text '" MNEME_TEST_TEXT "' --bytes 100000 " + arguments +
                              " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  Ended ended{-1, ""};
  std::array<char, 4096> buffer;
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) ended.output += buffer.data();
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ended.code = WEXITSTATUS(status);
  return ended;
}

std::vector<RecordedLayer> Record(const std::string& model, const std::string& layers, int64_t rows, int64_t queries) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/qk.bin";
  const Ended ended = RunRecord(model, "--layers " + layers + " --tokens " + std::to_string(rows) + " --queries " +
                                           std::to_string(queries) + " --output '" + path + "'");
  EXPECT_EQ(ended.code, 0) << ended.output;
  std::vector<RecordedLayer> recorded;
  std::string error;
  EXPECT_TRUE(ReadRecordedQk(path, &recorded, &error)) << error;
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1) << "something was left behind";
  return recorded;
}

// A memory of the text's first `tokens` tokens, as ingest makes it.
class Ingested {
 public:
  Ingested(llama_model* model, const std::string& path, int64_t tokens) : session_(model, Settings(path)) {
    memory_ = std::make_unique<Memory>(store_, "m", session_, /*create=*/true, 0, "f16");
    Ingest(session_, *memory_, TextTokens(model, 0, tokens), "m", MNEME_DURABILITY_BUFFERED, nullptr);
  }
  ~Ingested() { session_.Detach(0); }

  // f32 [rows, kv_heads, dim]
  std::vector<float> Keys(const RecordedLayer& layer, int64_t rows) const {
    std::vector<float> keys(static_cast<size_t>(rows * layer.kv_heads * layer.dim));
    const int64_t shape[] = {rows, layer.kv_heads, layer.dim};
    const mneme_tensor tensor = {keys.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
    args.layer = layer.layer;
    args.tokens = rows;
    args.keys = &tensor;
    EXPECT_EQ(mneme_memory_read(memory_->get(), &args), MNEME_OK) << mneme_last_error();
    return keys;
  }
  mneme_memory* memory() const { return memory_->get(); }

 private:
  static ModelSettings Settings(const std::string& path) {
    ModelSettings settings = SettingsFor(path);
    settings.window = kWindow;
    return settings;
  }

  const TemporaryFolder folder_;
  const Store store_{folder_.path(), 2};
  Session session_;
  std::unique_ptr<Memory> memory_;
};

// f16 keeps 11 bits.
void ExpectSameKeys(const RecordedLayer& layer, const std::vector<float>& stored, int64_t rows) {
  for (int32_t head = 0; head < layer.kv_heads; ++head) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int32_t d = 0; d < layer.dim; ++d) {
        const float recorded = layer.Keys(head)[row * layer.dim + d];
        const float kept = stored[static_cast<size_t>((row * layer.kv_heads + head) * layer.dim + d)];
        ASSERT_NEAR(recorded, kept, std::fabs(recorded) / 2048.0f + 1e-7f)
            << "layer " << layer.layer << ", head " << head << ", row " << row << ", dim " << d;
      }
    }
  }
}

// Copies the unrotated queries of one layer of the last token that a context decodes.
struct QueryTap {
  std::string name;
  std::vector<float> query;  // [q_heads, dim]

  static bool OnNode(ggml_tensor* node, bool ask, void* tap) {
    auto* self = static_cast<QueryTap*>(tap);
    const bool wanted = self->name == node->name && node->op != GGML_OP_ROPE && node->ne[2] > 1;
    if (ask) return wanted;
    self->query.resize(static_cast<size_t>(node->ne[0] * node->ne[1]));
    for (int64_t head = 0; head < node->ne[1]; ++head) {
      std::memcpy(self->query.data() + head * node->ne[0],
                  static_cast<const char*>(node->data) + (node->ne[2] - 1) * node->nb[2] + head * node->nb[1],
                  static_cast<size_t>(node->ne[0]) * sizeof(float));
    }
    return true;
  }
};

// The last recorded query is that of the last token read: products with the recorded keys are the scores by which the
// engine ranks rows at the same distance.
void ExpectEnginesScores(llama_model* model, const Ingested& ingested, const RecordedLayer& layer,
                         const std::string& node) {
  QueryTap tap{node + "-" + std::to_string(layer.layer), {}};
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 2 * kWindow;
  params.n_batch = params.n_ubatch = kWindow;
  params.n_threads = params.n_threads_batch = 2;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.cb_eval = &QueryTap::OnNode;
  params.cb_eval_user_data = &tap;
  const ContextPtr context(llama_init_from_model(model, params));
  std::vector<llama_token> tokens = TextTokens(model, 0, kRows + 8 * kQueries);
  DecodePlain(context.get(), std::span(tokens).first(kWindow));
  DecodePlain(context.get(), std::span(tokens).subspan(kWindow));

  const int64_t shape[] = {1, layer.query_heads, layer.dim};
  ASSERT_EQ(tap.query.size(), static_cast<size_t>(layer.query_heads * layer.dim));
  const mneme_tensor query = {tap.query.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
  const int64_t position = kRows + 8 * kQueries - 1;
  const int64_t end = kRows;
  std::vector<int64_t> rows(static_cast<size_t>(layer.query_heads) * 32);
  std::vector<float> scores(rows.size());
  mneme_search_args args = MNEME_SEARCH_ARGS_INIT;
  args.layer = layer.layer;
  args.query = &query;
  args.query_positions = &position;
  args.memory_end = &end;
  args.position_policy = MNEME_POSITION_FIXED_DISTANCE;
  args.default_distance = 2048.0f;
  args.tokens = rows.data();
  args.scores = scores.data();
  mneme_memory* memory = ingested.memory();
  ASSERT_EQ(mneme_search(&memory, 1, &args), MNEME_OK) << mneme_last_error();
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto head = static_cast<int32_t>(i / 32);
    const float* recorded = layer.Queries(head) + (kQueries - 1) * layer.dim;
    const float* key = layer.Keys(head * layer.kv_heads / layer.query_heads) + rows[i] * layer.dim;
    double product = 0.0;
    double size = 0.0;
    for (int32_t d = 0; d < layer.dim; ++d) {
      product += static_cast<double>(recorded[d]) * key[d];
      size += std::fabs(static_cast<double>(recorded[d]) * key[d]);
    }
    ASSERT_NEAR(scores[i], product, 1e-3 * size) << "layer " << layer.layer << ", head " << head << ", row " << rows[i];
  }
}

TEST(RecordTest, KeysAndQueriesAreThoseOfAMemory) {
  const std::vector<RecordedLayer> recorded = Record(SmolPath(), "20,3", kRows, kQueries);
  ASSERT_EQ(recorded.size(), 2u);
  EXPECT_EQ(recorded[0].layer, 3);
  EXPECT_EQ(recorded[1].layer, 20);
  const Ingested ingested(Smol(), SmolPath(), kRows + 8 * kQueries);
  for (const RecordedLayer& layer : recorded) {
    ASSERT_EQ(layer.rows, kRows);
    ASSERT_EQ(layer.queries, kQueries);
    ASSERT_EQ(layer.query_heads, 9);
    ASSERT_EQ(layer.kv_heads, 3);
    ASSERT_EQ(layer.dim, 64);
    ExpectSameKeys(layer, ingested.Keys(layer, kRows), kRows);
    ExpectEnginesScores(Smol(), ingested, layer, "Qcur");
  }
}

TEST(RecordTest, NormedAndScaledQueries) {
  const std::vector<RecordedLayer> recorded = Record(GemmaPath(), "2,5", kRows, kQueries);
  ASSERT_EQ(recorded.size(), 2u);
  EXPECT_EQ(recorded[0].layer, 2);  // of a sliding window; no memory holds it
  const Ingested ingested(Gemma(), GemmaPath(), kRows + 8 * kQueries);
  ExpectSameKeys(recorded[1], ingested.Keys(recorded[1], kRows), kRows);
  ExpectEnginesScores(Gemma(), ingested, recorded[1], "Qcur_normed");
}

// The first layer's keys depend on their own token alone, whatever the window is.
TEST(RecordTest, RowsStayInOrderAsTheWindowSlides) {
  constexpr int64_t kLong = 5 * kWindow + 17;
  const std::vector<RecordedLayer> recorded = Record(SmolPath(), "0", kLong, 1);
  ASSERT_EQ(recorded.size(), 1u);
  const Ingested ingested(Smol(), SmolPath(), kLong + 8);
  ExpectSameKeys(recorded[0], ingested.Keys(recorded[0], kLong), kLong);
}

TEST(RecordTest, DefaultLayersAreGlobalOnes) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/qk.bin";
  const Ended ended = RunRecord(GemmaPath(), "--tokens 20 --queries 1 --output '" + path + "'");
  ASSERT_EQ(ended.code, 0) << ended.output;
  std::vector<RecordedLayer> recorded;
  std::string error;
  ASSERT_TRUE(ReadRecordedQk(path, &recorded, &error)) << error;
  std::vector<int32_t> layers;
  for (const RecordedLayer& layer : recorded) layers.push_back(layer.layer);
  EXPECT_EQ(layers, (std::vector<int32_t>{5, 11, 17}));
}

TEST(RecordTest, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/qk.bin";
  const std::string output = " --output '" + path + "'";
  const auto expect = [](const std::string& arguments, const std::string& message) {
    const Ended ended = RunRecord(SmolPath(), arguments);
    EXPECT_NE(ended.code, 0) << arguments;
    EXPECT_THAT(ended.output, HasSubstr(message)) << arguments;
  };
  expect("--layers 3,30 --tokens 20" + output, "the model has no layer 30, only 0 to 29");
  expect("--layers -1 --tokens 20" + output, "the model has no layer -1");
  expect("--tokens 1000000" + output, "take 1002048 tokens, the text has ");
  expect("--tokens 0" + output, "--tokens");
  expect("--queries 0" + output, "--queries");
  expect("--pinned 128" + output, "--pinned: must be less than --window");
  expect("--tokens 20 --queries 1", "--output is required");
  expect("--tokens 20 --queries 1 --output '" + folder.path() + "/none/qk.bin'", "--output: cannot write");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  // A folder cannot be replaced by a file; it is noticed before the text is read.
  std::filesystem::create_directory(path);
  expect("--tokens 20 --queries 1" + output, "--output: cannot write");
}

}  // namespace
}  // namespace mneme::llama
