// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "base/temporary_folder.h"
#include "hosts/llamacpp/main/block_reader.h"
#include "hosts/llamacpp/main/commands.h"
#include "hosts/llamacpp/main/plain_context.h"
#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/main/text.h"
#include "hosts/llamacpp/src/card.h"
#include "hosts/llamacpp/src/model_shape.h"
#include "nlohmann/json.hpp"

namespace mneme::llama {
namespace {

struct Arguments {
  ModelSettings model;
  TextSettings text;
  std::vector<int64_t> past = {2048, 8192};
  int64_t read = 8192;
  int64_t single = 64;
  std::vector<std::string> variants = {"middle", "all", "native"};
  std::string engine_threads = "shared";
  bool json = false;

  bool Has(const std::string& variant) const { return std::count(variants.begin(), variants.end(), variant) > 0; }
};

constexpr size_t kSomeLayers = 3;

// What tells copies of a row from each other, so that they do not tie: so much of the key's greatest element.
constexpr float kCopyNoise = 0.02f;

std::vector<int32_t> LayersOf(const Session& session) {
  const int32_t* layers = nullptr;
  const size_t count = mneme_llama_get_layers(session.adapter(), &layers);
  return {layers, layers + count};
}

ModelShape ShapeOf(const llama_model* model) {
  ModelShape shape;
  const Status status = ReadModelShape(model, &shape);
  if (!status.ok()) throw Failure(status.message());
  return shape;
}

// Those that all layers with a memory would be.
std::vector<int32_t> AllLayers(const llama_model* model, const ModelSettings& settings) {
  std::vector<int32_t> layers;
  const Status status = ChooseLayers(ShapeOf(model), settings.layers, &layers);
  if (!status.ok()) throw Failure(status.message());
  return layers;
}

std::vector<int32_t> MiddleOf(const std::vector<int32_t>& layers) {
  const size_t some = std::min(kSomeLayers, layers.size());
  const auto first = layers.begin() + static_cast<std::ptrdiff_t>((layers.size() - some) / 2);
  return {first, first + static_cast<std::ptrdiff_t>(some)};
}

// One of those that decode the same tokens after the same past, of which they see more or less.
class Variant {
 public:
  Variant(std::string name, std::span<const llama_token> text) : text_(text), name_(std::move(name)) {}
  virtual ~Variant() = default;

  const std::string& name() const { return name_; }
  virtual int64_t layers_with_memory() const { return 0; }
  // What the adapter has done so far; nothing without one.
  virtual mneme_llama_stats Stats() const { return MNEME_LLAMA_STATS_INIT; }
  virtual bool CanHave(int64_t past) const = 0;
  // Puts the text's first `past` tokens behind the next one. `past` grows from call to call.
  virtual void Fill(int64_t past) = 0;
  virtual void Decode(std::span<const llama_token> tokens) = 0;

 protected:
  std::span<const llama_token> Text(int64_t begin, int64_t end) const {
    return text_.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  }

 private:
  const std::span<const llama_token> text_;
  const std::string name_;
};

// llama.cpp alone, seeing the newest window.
class WindowAlone : public Variant {
 public:
  WindowAlone(llama_model* model, const Arguments& arguments, std::span<const llama_token> text)
      : Variant("window alone", text), window_(arguments.model.window), context_(model, arguments.model) {}

  bool CanHave(int64_t) const override { return true; }
  void Fill(int64_t past) override {
    context_.Clear();
    context_.Decode(Text(past - window_, past));
  }
  void Decode(std::span<const llama_token> tokens) override { context_.Decode(tokens); }

 private:
  const int64_t window_;
  PlainContext context_;
};

// llama.cpp alone, seeing everything, up to what the model was trained for.
class NativeContext : public Variant {
 public:
  NativeContext(llama_model* model, const Arguments& arguments, std::span<const llama_token> text)
      : Variant("native context", text),
        block_(arguments.model.window),
        most_(std::min<int64_t>(arguments.past.back(), llama_model_n_ctx_train(model))),
        context_(model, arguments.model, static_cast<uint32_t>(most_ + arguments.single)) {}

  bool CanHave(int64_t past) const override { return past <= most_; }
  void Fill(int64_t past) override {
    context_.Clear();
    for (int64_t begin = 0; begin < past; begin += block_) context_.Decode(Text(begin, std::min(begin + block_, past)));
  }
  void Decode(std::span<const llama_token> tokens) override { context_.Decode(tokens); }

 private:
  const int64_t block_;
  const int64_t most_;
  PlainContext context_;
};

// The newest window, and on the layers of `settings` a memory of everything.
class Remembering : public Variant {
 public:
  // threads: shared with the store, or null.
  Remembering(const std::string& name, llama_model* model, const ModelSettings& settings, const ThreadsPtr& threads,
              const Store& store, std::span<const llama_token> text, int64_t read)
      : Variant(name, text),
        read_(read),
        shape_(ShapeOf(model)),
        session_(model, settings),
        memory_(store, name, session_, true, 0, "f16") {
    if (threads != nullptr) session_.Share(threads);
  }
  ~Remembering() override {
    mneme_llama_set_memory(session_.adapter(), 0, nullptr, MNEME_LLAMA_MODE_READ);  // the memory is closed first
  }

  std::vector<int32_t> layers() const { return LayersOf(session_); }
  int64_t layers_with_memory() const override { return static_cast<int64_t>(layers().size()); }
  mneme_llama_stats Stats() const override {
    mneme_llama_stats stats = MNEME_LLAMA_STATS_INIT;
    CheckAdapter(mneme_llama_get_stats(session_.adapter(), &stats));
    return stats;
  }

  bool CanHave(int64_t) const override { return true; }
  void Fill(int64_t past) override {
    session_.Detach(0);
    CheckEngine(
        mneme_memory_truncate(memory_.get(), filled_));  // what was decoded since is not of the text's beginning
    filled_ = past - session_.window();
    const int64_t end = std::min(read_, filled_);
    if (memory_.Info().next_token < end) {
      Ingest(session_, memory_, Text(memory_.Info().next_token, end), name(), MNEME_DURABILITY_BUFFERED, nullptr);
      session_.Detach(0);
    }
    Repeat();
    session_.Attach(0, memory_.get(), MNEME_LLAMA_MODE_APPEND);
    Decode(Text(filled_, past));
  }
  void Decode(std::span<const llama_token> tokens) override { session_.Decode(tokens, /*all_logits=*/false); }

 private:
  // Appends copies of the first `read_` tokens until the memory holds filled_.
  void Repeat() {
    constexpr int64_t kStep = 2048;
    for (int64_t begin = memory_.Info().next_token; begin < filled_;) {
      const int64_t from = begin % read_;
      const int64_t tokens = std::min({filled_ - begin, read_ - from, kStep});
      for (const int32_t layer : layers()) RepeatLayer(layer, from, tokens);
      CheckEngine(mneme_memory_commit(memory_.get(), MNEME_DURABILITY_BUFFERED, nullptr));
      begin += tokens;
    }
  }

  void RepeatLayer(int32_t number, int64_t from, int64_t tokens) {
    const LayerShape& layer = shape_.layers[static_cast<size_t>(number)];
    const int64_t key_shape[] = {tokens, layer.kv_heads, layer.key_dim};
    const int64_t value_shape[] = {tokens, layer.kv_heads, layer.value_dim};
    std::vector<float> keys(static_cast<size_t>(tokens * layer.kv_heads * layer.key_dim));
    std::vector<float> values(static_cast<size_t>(tokens * layer.kv_heads * layer.value_dim));
    const mneme_tensor key_tensor = {keys.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, key_shape, nullptr};
    const mneme_tensor value_tensor = {values.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, value_shape, nullptr};
    mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
    read.layer = number;
    read.begin = from;
    read.tokens = tokens;
    read.keys = &key_tensor;
    read.values = &value_tensor;
    CheckEngine(mneme_memory_read(memory_.get(), &read));
    const auto dim = static_cast<size_t>(layer.key_dim);
    std::uniform_real_distribution<float> noise(-kCopyNoise, kCopyNoise);
    for (size_t row = 0; row < keys.size(); row += dim) {
      float greatest = 0.0f;
      for (size_t d = row; d < row + dim; ++d) greatest = std::max(greatest, std::fabs(keys[d]));
      for (size_t d = row; d < row + dim; ++d) keys[d] += greatest * noise(random_);
    }
    mneme_memory_append_args append = MNEME_MEMORY_APPEND_ARGS_INIT;
    append.layer = number;
    append.keys = &key_tensor;
    append.values = &value_tensor;
    CheckEngine(mneme_memory_append(memory_.get(), &append));
  }

  const int64_t read_;
  int64_t filled_ = 0;  // tokens in the memory, but for those of the last Fill's window and after
  std::mt19937 random_{1};
  const ModelShape shape_;
  Session session_;
  const Memory memory_;
};

struct Speed {
  const Variant* variant;
  double median_seconds;  // a token
  double best_seconds;
  // Means a token of what the adapter says of itself.
  double attend_seconds;
  double append_seconds;
  double capture_seconds;
};

// Means a token of what came between `before` and `after`.
void AddStats(const mneme_llama_stats& before, const mneme_llama_stats& after, Speed* speed) {
  const auto tokens = static_cast<double>(std::max<int64_t>(1, after.tokens - before.tokens));
  const auto mean = [&](int64_t from, int64_t to) { return static_cast<double>(to - from) * 1e-6 / tokens; };
  speed->attend_seconds = mean(before.attend_us, after.attend_us);
  speed->append_seconds = mean(before.append_us, after.append_us);
  speed->capture_seconds = mean(before.capture_us, after.capture_us);
}

// Token by token in turn, so that all meet the same machine.
std::vector<Speed> Measure(const std::vector<Variant*>& variants, std::span<const llama_token> tokens) {
  std::vector<std::vector<double>> times(variants.size());
  std::vector<mneme_llama_stats> before;
  before.reserve(variants.size());
  for (const Variant* variant : variants) before.push_back(variant->Stats());
  for (size_t i = 0; i < tokens.size(); ++i) {
    for (size_t turn = 0; turn < variants.size(); ++turn) {
      const size_t who = (i + turn) % variants.size();
      times[who].push_back(SecondsOf([&] { variants[who]->Decode(tokens.subspan(i, 1)); }));
    }
  }
  std::vector<Speed> speeds;
  for (size_t who = 0; who < variants.size(); ++who) {
    std::sort(times[who].begin(), times[who].end());
    Speed speed{variants[who], times[who][times[who].size() / 2], times[who].front(), 0.0, 0.0, 0.0};
    AddStats(before[who], variants[who]->Stats(), &speed);
    speeds.push_back(speed);
  }
  return speeds;
}

void CheckArguments(const Arguments& arguments, const std::vector<llama_token>& tokens) {
  if (arguments.past.front() < arguments.model.window) {
    throw UsageError("--past: must be at least --window, which is " + std::to_string(arguments.model.window) +
                     "; got " + std::to_string(arguments.past.front()));
  }
  if (arguments.single > arguments.model.window) {
    throw UsageError("--tokens: must be at most --window, which is " + std::to_string(arguments.model.window) +
                     "; got " + std::to_string(arguments.single));
  }
  const auto needed = static_cast<size_t>(arguments.past.back() + arguments.single);
  if (tokens.size() < needed) {
    throw UsageError("--past and --tokens take " + std::to_string(needed) + " tokens, the text has " +
                     std::to_string(tokens.size()));
  }
}

void Print(int64_t past, const std::vector<Speed>& speeds) {
  std::printf("%-34s %12s %11s %11s %14s %12s\n", ("a past of " + std::to_string(past) + " tokens").c_str(), "tokens/s",
              "median", "best", "× window alone", "attending");
  for (const Speed& speed : speeds) {
    std::printf("  %-32s %12.1f %8.2f ms %8.2f ms %13.2f", speed.variant->name().c_str(), 1.0 / speed.median_seconds,
                speed.median_seconds * 1e3, speed.best_seconds * 1e3,
                speed.median_seconds / speeds.front().median_seconds);
    if (speed.attend_seconds > 0) std::printf(" %9.2f ms", speed.attend_seconds * 1e3);
    std::printf("\n");
  }
  std::fflush(stdout);
}

nlohmann::json Report(int64_t past, const std::vector<Speed>& speeds) {
  nlohmann::json variants = nlohmann::json::array();
  for (const Speed& speed : speeds) {
    variants.push_back({{"name", speed.variant->name()},
                        {"layers_with_memory", speed.variant->layers_with_memory()},
                        {"tokens_per_second", 1.0 / speed.median_seconds},
                        {"median_token_seconds", speed.median_seconds},
                        {"best_token_seconds", speed.best_seconds},
                        {"times_window_alone", speed.median_seconds / speeds.front().median_seconds},
                        {"attend_token_seconds", speed.attend_seconds},
                        {"append_token_seconds", speed.append_seconds},
                        {"capture_token_seconds", speed.capture_seconds}});
  }
  return {{"past_tokens", past}, {"variants", variants}};
}

void Run(Arguments arguments) {
  const ModelPtr model = LoadModel(arguments.model.model);
  const std::vector<llama_token> tokens = ReadText(model.get(), arguments.text);
  std::sort(arguments.past.begin(), arguments.past.end());
  CheckArguments(arguments, tokens);

  ModelSettings some = arguments.model;
  some.layers = MiddleOf(AllLayers(model.get(), arguments.model));

  const ThreadsPtr threads = arguments.engine_threads == "shared" ? MakeThreads(arguments.model) : nullptr;
  const TemporaryFolder folder;
  const auto store = threads != nullptr ? std::make_unique<Store>(folder.path(), threads)
                                        : std::make_unique<Store>(folder.path(), ThreadsOf(arguments.model));
  std::vector<std::unique_ptr<Variant>> all;
  all.push_back(std::make_unique<WindowAlone>(model.get(), arguments, tokens));
  const auto add_memory = [&](const char* name, const ModelSettings& settings) {
    all.push_back(std::make_unique<Remembering>(name, model.get(), settings, threads, *store, tokens, arguments.read));
  };
  if (arguments.Has("middle")) add_memory("memory, middle layers", some);
  if (arguments.Has("all")) add_memory("memory, all layers", arguments.model);
  if (arguments.Has("native")) all.push_back(std::make_unique<NativeContext>(model.get(), arguments, tokens));

  nlohmann::json pasts = nlohmann::json::array();
  for (const int64_t past : arguments.past) {
    std::vector<Variant*> variants;
    for (const auto& variant : all) {
      if (!variant->CanHave(past)) continue;
      variant->Fill(past);
      variants.push_back(variant.get());
    }
    const auto next = std::span(tokens).subspan(static_cast<size_t>(past), static_cast<size_t>(arguments.single));
    const std::vector<Speed> speeds = Measure(variants, next);
    if (arguments.json) {
      pasts.push_back(Report(past, speeds));
    } else {
      Print(past, speeds);
    }
  }
  if (!arguments.json) return;
  const nlohmann::json report = {{"window", arguments.model.window},
                                 {"top_k", arguments.model.top_k},
                                 {"tokens", arguments.single},
                                 {"read_tokens", std::min(arguments.read, arguments.past.back())},
                                 {"middle_layers", some.layers},
                                 {"engine_threads", arguments.engine_threads},
                                 {"pasts", pasts}};
  std::printf("%s\n", report.dump().c_str());
}

}  // namespace

void AddSpeed(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = program.add_subcommand(
      "speed",
      "Tokens a second of decoding one by one after a long past: with the window alone, with a memory of the "
      "past on the three middle layers and on all, and with all of it as native context. What the memory costs "
      "includes appending, not committing.");
  AddModelOptions(command, &arguments->model);
  AddTextOptions(command, &arguments->text);
  command
      ->add_option("--past", arguments->past,
                   "tokens before those that are timed, of which native context takes no "
                   "more than the model was trained for; several in turn")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--read", arguments->read,
                   "so many are read by the model; memories of more are filled up with "
                   "copies of their rows, 2 % of noise on the keys")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--tokens", arguments->single, "timed for each past; the median counts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--variants", arguments->variants,
                   "which are measured beside the window alone: memory on the middle layers, on all, native context")
      ->delimiter(',')
      ->check(CLI::IsMember({"middle", "all", "native"}))
      ->capture_default_str();
  command
      ->add_option("--engine-threads", arguments->engine_threads,
                   "the engine works on llama.cpp's threads (shared), or on as many of its own")
      ->check(CLI::IsMember({"shared", "own"}))
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "print the figures as JSON");
  command->callback([command, arguments] {
    CheckModelOptions(*command, arguments->model);
    Run(*arguments);
  });
}

}  // namespace mneme::llama
