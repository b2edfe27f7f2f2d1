// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "hosts/llamacpp/main/commands.h"
#include "hosts/llamacpp/main/plain_context.h"
#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/main/text.h"
#include "nlohmann/json.hpp"

namespace mneme::llama {
namespace {

struct Arguments {
  ModelSettings model;
  TextSettings text;
  int32_t rounds = 5;
  int32_t single = 64;
  bool json = false;
};

// Seconds of the same work, done several times: what disturbs a measurement only ever adds to it, so the least counts.
class Best {
 public:
  void Take(double seconds) { best_ = std::min(best_, seconds); }
  double seconds() const { return best_; }

 private:
  double best_ = 1e9;
};

double Mean(const std::vector<Best>& times) {
  double sum = 0.0;
  for (const Best& time : times) sum += time.seconds();
  return sum / static_cast<double>(times.size());
}

// What mneme_memory_append has taken so far.
double AppendSeconds(const Session& session) {
  mneme_llama_stats stats = MNEME_LLAMA_STATS_INIT;
  CheckAdapter(mneme_llama_get_stats(session.adapter(), &stats));
  return static_cast<double>(stats.append_us) * 1e-6;
}

// Seconds of the fastest round. Single tokens are compared one by one.
struct Times {
  explicit Times(size_t single) : single_without(single), single_with(single) {}

  Best block_without, block_with, append;
  std::vector<Best> single_without, single_with;
};

// The same tokens with llama.cpp alone and with the adapter.
class Comparison {
 public:
  Comparison(const Arguments& arguments, llama_model* model, std::span<const llama_token> block,
             std::span<const llama_token> rest)
      : threads_(MakeThreads(arguments.model)),
        session_(model, arguments.model),
        plain_(model, arguments.model),
        store_(folder_.path(), threads_),
        block_(block),
        rest_(rest) {
    session_.Share(threads_);
  }

  // times: null for a round that only warms pages and caches.
  void RunRound(int32_t round, Times* times) {
    plain_.Clear();
    // The window holds everything, so that nothing of the memory is visible yet; rows are appended all the same.
    const Memory memory(store_, "round " + std::to_string(round), session_, /*create=*/true, 0, "f16");
    session_.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
    CompareBlock(memory, times);
    // Token by token in turn, so that both meet the same machine.
    for (size_t i = 0; i < rest_.size(); ++i) CompareToken(i, times);
    session_.Detach(0);
  }

 private:
  // Seconds of the model and the adapter, without those of appending, which go to *appending.
  double DecodeSeconds(std::span<const llama_token> tokens, double* appending) {
    const double before = AppendSeconds(session_);
    const double all = SecondsOf([&] { session_.Decode(tokens, /*all_logits=*/false); });
    *appending = AppendSeconds(session_) - before;
    return all - *appending;
  }

  void CompareBlock(const Memory& memory, Times* times) {
    const double without = SecondsOf([&] { plain_.Decode(block_); });
    double appending = 0.0;
    const double with = DecodeSeconds(block_, &appending);
    const double committing =
        SecondsOf([&] { CheckEngine(mneme_memory_commit(memory.get(), MNEME_DURABILITY_BUFFERED, nullptr)); });
    if (times == nullptr) return;
    times->block_without.Take(without);
    times->block_with.Take(with);
    times->append.Take(appending + committing);
  }

  void CompareToken(size_t i, Times* times) {
    const double without = SecondsOf([&] { plain_.Decode(rest_.subspan(i, 1)); });
    double appending = 0.0;
    const double with = DecodeSeconds(rest_.subspan(i, 1), &appending);
    if (times == nullptr) return;
    times->single_without[i].Take(without);
    times->single_with[i].Take(with);
  }

  const ThreadsPtr threads_;
  Session session_;
  PlainContext plain_;
  const TemporaryFolder folder_;
  const Store store_;
  const std::span<const llama_token> block_;
  const std::span<const llama_token> rest_;
};

void Print(const Times& times, size_t window, bool json) {
  const double block_without = times.block_without.seconds(), block_with = times.block_with.seconds();
  const double single_without = Mean(times.single_without), single_with = Mean(times.single_with);
  const double append = times.append.seconds();
  const double block_cost = block_with / block_without - 1.0;
  const double single_cost = single_with / single_without - 1.0;
  if (json) {
    const nlohmann::json report = {{"block_tokens", window},
                                   {"model_block_seconds", block_without},
                                   {"adapter_block_seconds", block_with},
                                   {"model_token_seconds", single_without},
                                   {"adapter_token_seconds", single_with},
                                   {"append_commit_block_seconds", append},
                                   {"adapter_block_fraction", block_cost},
                                   {"adapter_token_fraction", single_cost},
                                   {"append_commit_fraction", append / block_without}};
    std::printf("%s\n", report.dump().c_str());
    return;
  }
  std::printf("%-38s %12s %12s %9s\n", "nothing remembered yet", "model alone", "with adapter", "cost");
  std::printf("%-38s %9.1f ms %9.1f ms %8.1f%%\n", ("a block of " + std::to_string(window) + " tokens").c_str(),
              block_without * 1e3, block_with * 1e3, block_cost * 100);
  std::printf("%-38s %9.2f ms %9.2f ms %8.1f%%\n", "one token", single_without * 1e3, single_with * 1e3,
              single_cost * 100);
  std::printf("%-38s %12s %9.1f ms %8.1f%%\n", "appending and committing the block", "", append * 1e3,
              append / block_without * 100);
}

void Run(const Arguments& arguments) {
  const ModelPtr model = LoadModel(arguments.model.model);
  const std::vector<llama_token> tokens = ReadText(model.get(), arguments.text);
  const auto window = static_cast<size_t>(arguments.model.window);
  const size_t single = std::min(static_cast<size_t>(std::max(arguments.single, 1)), window);
  if (tokens.size() < window + single) throw Failure("the text is shorter than a block");
  Comparison comparison(arguments, model.get(), std::span(tokens).first(window),
                        std::span(tokens).subspan(window, single));
  Times times(single);
  for (int32_t round = 0; round <= arguments.rounds; ++round) comparison.RunRound(round, round > 0 ? &times : nullptr);
  Print(times, window, arguments.json);
}

}  // namespace

void AddOverhead(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = program.add_subcommand(
      "overhead",
      "What the adapter costs while the memory has nothing to say, and what appending and committing cost.");
  AddModelOptions(command, &arguments->model);
  AddTextOptions(command, &arguments->text);
  command
      ->add_option("--rounds", arguments->rounds,
                   "measure so often, with and without in turn; the best of the block and of each token counts")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "print the figures as JSON");
  command->callback([command, arguments] {
    CheckModelOptions(*command, arguments->model);
    Run(*arguments);
  });
}

}  // namespace mneme::llama
