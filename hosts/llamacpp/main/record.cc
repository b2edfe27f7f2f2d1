// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>

#include "hosts/llamacpp/main/commands.h"
#include "hosts/llamacpp/main/failure.h"
#include "hosts/llamacpp/main/key_recorder.h"
#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/main/text.h"
#include "hosts/llamacpp/src/card.h"

namespace mneme::llama {
namespace {

struct Arguments {
  ModelSettings model;
  TextSettings text;
  int64_t tokens = 32768;
  int64_t queries = 256;
  std::string output;
};

void CheckStatus(const Status& status) {
  if (!status.ok()) throw Failure(status.message());
}

ModelShape ShapeOf(const llama_model* model) {
  ModelShape shape;
  CheckStatus(ReadModelShape(model, &shape));
  return shape;
}

// Those asked for, in order; or one early, one late and two between of the global ones. Unlike memories, recordings may
// be of sliding-window layers.
std::vector<int32_t> LayersOf(const ModelShape& shape, std::vector<int32_t> wanted) {
  if (wanted.empty()) {
    std::vector<int32_t> global;
    CheckStatus(ChooseLayers(shape, {}, &global));
    const size_t n = global.size();
    for (const size_t place : {n / 10, n / 3, 2 * n / 3, n - std::min<size_t>(n, 2)}) wanted.push_back(global[place]);
  }
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  for (const int32_t layer : wanted) {
    const bool has = layer >= 0 && layer < static_cast<int32_t>(shape.layers.size());
    if (has && shape.layers[layer].refusal.empty()) continue;
    if (has) throw UsageError("--layers: layer " + std::to_string(layer) + ": " + shape.layers[layer].refusal);
    throw UsageError("--layers: the model has no layer " + std::to_string(layer) + ", only 0 to " +
                     std::to_string(shape.layers.size() - 1));
  }
  return wanted;
}

// Makes the inner product of `query` with an unrotated key the score of a row that stands `distance` tokens before it.
void PlaceQuery(const LayerShape& layer, std::span<const float> frequencies, double distance, float* query) {
  const size_t pairs = frequencies.size();
  const auto magnitude = static_cast<double>(RotaryMagnitude(layer.rotary));
  const double both = magnitude * magnitude;  // of query and key
  for (size_t i = 0; i < pairs; ++i) {
    float& a = query[layer.rotary.halves ? i : 2 * i];
    float& b = query[layer.rotary.halves ? i + pairs : 2 * i + 1];
    const double angle = distance * frequencies[i];
    const double turned = both * (a * std::cos(angle) - b * std::sin(angle));
    b = static_cast<float>(both * (a * std::sin(angle) + b * std::cos(angle)));
    a = static_cast<float>(turned);
  }
  for (int32_t i = 0; i < layer.key_dim; ++i) query[i] *= layer.scale;
}

// A file that has its name only once it is whole, so that nobody takes the half of an interrupted run for all of it.
// Little endian: magic "MNEMEQK1", int32 layers; for each int32 layer, q_heads, kv_heads, dim, rows, queries,
// keys f32 [kv_heads][rows][dim], queries f32 [q_heads][queries][dim].
class RecordingFile {
 public:
  explicit RecordingFile(const std::string& path) : path_(path), unfinished_(path + ".unfinished") {
    if (!std::filesystem::is_directory(path)) file_.open(unfinished_, std::ios::binary | std::ios::trunc);
    if (!file_.is_open()) throw Failure("--output: cannot write " + path);
  }
  ~RecordingFile() {
    std::error_code ignored;
    std::filesystem::remove(unfinished_, ignored);
  }
  RecordingFile(const RecordingFile&) = delete;
  RecordingFile& operator=(const RecordingFile&) = delete;

  void Begin(size_t layers) {
    file_.write("MNEMEQK1", 8);
    Write({static_cast<int32_t>(layers)});
  }
  void Add(const LayerShape& shape, const RecordingPlan& plan, const LayerRecording& layer) {
    Write({layer.layer, shape.q_heads, shape.kv_heads, shape.key_dim, static_cast<int32_t>(plan.rows),
           static_cast<int32_t>(plan.queries)});
    Write(layer.keys);
    Write(layer.queries);
  }
  void Finish() {
    file_.close();
    std::error_code error;
    if (file_) std::filesystem::rename(unfinished_, path_, error);
    if (!file_ || error) throw Failure("--output: cannot write " + path_);
  }

 private:
  template <typename Number>
  void Write(const std::vector<Number>& numbers) {
    file_.write(reinterpret_cast<const char*>(numbers.data()),
                static_cast<std::streamsize>(numbers.size() * sizeof(Number)));
  }
  void Write(std::initializer_list<int32_t> numbers) { Write(std::vector<int32_t>(numbers)); }

  const std::string path_;
  const std::string unfinished_;
  std::ofstream file_;
};

void Run(const Arguments& arguments) {
  const RecordingPlan plan{arguments.tokens, arguments.queries};
  const ModelPtr model = LoadModel(arguments.model.model);
  const ModelShape shape = ShapeOf(model.get());
  const std::vector<int32_t> layers = LayersOf(shape, arguments.model.layers);
  const std::vector<llama_token> tokens = ReadText(model.get(), arguments.text);
  if (static_cast<int64_t>(tokens.size()) < plan.tokens()) {
    throw UsageError("--tokens: " + std::to_string(plan.rows) + " keys and, after them, " +
                     std::to_string(plan.queries) + " queries of one token in " +
                     std::to_string(RecordingPlan::kQueryStride) + " take " + std::to_string(plan.tokens()) +
                     " tokens, the text has " + std::to_string(tokens.size()));
  }
  RecordingFile file(arguments.output);
  std::vector<LayerRecording> recorded =
      RecordKeys(model.get(), shape, arguments.model, layers, plan, tokens, "recording");
  file.Begin(recorded.size());
  for (LayerRecording& one : recorded) {
    const LayerShape& layer = shape.layers[one.layer];
    const std::vector<float> frequencies = InverseFrequencies(layer.rotary);
    for (size_t at = 0; at < one.queries.size(); at += static_cast<size_t>(layer.key_dim)) {
      PlaceQuery(layer, frequencies, arguments.model.distance, one.queries.data() + at);
    }
    file.Add(layer, plan, one);
  }
  file.Finish();
  std::printf("%s: %zu layers, %lld keys a KV head, %lld queries a query head\n", arguments.output.c_str(),
              recorded.size(), static_cast<long long>(plan.rows), static_cast<long long>(plan.queries));
}

}  // namespace

void AddRecord(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = program.add_subcommand(
      "record", "Record keys, and queries that would search them, while a model reads a text without a memory.");
  ModelSettings& model = arguments->model;
  AddModelFileOptions(command, &model);
  AddTextOptions(command, &arguments->text);
  command->add_option("--layers", model.layers, "layers to record; default: four of the global ones, early to late")
      ->delimiter(',');
  command->add_option("--tokens", arguments->tokens, "record the keys of the text's first tokens")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_option("--queries", arguments->queries, "record so many queries, of every eighth token after those")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--distance", model.distance, "queries search for rows that stand so many tokens before them")
      ->check(AtLeast(0))
      ->capture_default_str();
  command->add_option("--pinned", model.pinned, "first tokens that the window keeps")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--window", model.window, "tokens of a block, and of what a block sees before it")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--output", arguments->output, "file to write")->required();
  command->callback([arguments] {
    if (arguments->model.pinned >= arguments->model.window) throw UsageError("--pinned: must be less than --window");
    Run(*arguments);
  });
}

}  // namespace mneme::llama
