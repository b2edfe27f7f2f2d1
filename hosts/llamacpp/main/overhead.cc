// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <memory>

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

void Run(const Arguments& arguments) {
  const ModelPtr model = LoadModel(arguments.model.model);
  const std::vector<llama_token> tokens = ReadText(model.get(), arguments.text);
  const auto window = static_cast<size_t>(arguments.model.window);
  const size_t single = std::min(static_cast<size_t>(std::max(arguments.single, 1)), window);
  if (tokens.size() < window + single) throw Failure("the text is shorter than a block");
  const auto block = std::span(tokens).first(window);
  const auto rest = std::span(tokens).subspan(window, single);

  const ThreadsPtr threads = MakeThreads(arguments.model);
  Session session(model.get(), arguments.model);
  session.Share(threads);
  PlainContext plain(model.get(), arguments.model);
  const TemporaryFolder folder;
  const Store store(folder.path(), threads);
  Best block_without, block_with, append;
  std::vector<Best> single_without(single), single_with(single);
  for (int32_t round = 0; round <= arguments.rounds; ++round) {
    const bool counts = round > 0;  // pages and caches are warm from then on
    plain.Clear();
    // The window holds everything, so that nothing of the memory is visible yet; rows are appended all the same.
    const Memory memory(store, "round " + std::to_string(round), session, /*create=*/true, 0, "f16");
    session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
    const double plain_block = SecondsOf([&] { plain.Decode(block); });
    const double before_block = AppendSeconds(session);
    double block_seconds = SecondsOf([&] { session.Decode(block, /*all_logits=*/false); });
    const double appending = AppendSeconds(session) - before_block;
    block_seconds -= appending;
    const double committing =
        SecondsOf([&] { CheckEngine(mneme_memory_commit(memory.get(), MNEME_DURABILITY_BUFFERED, nullptr)); });
    if (counts) {
      block_without.Take(plain_block);
      block_with.Take(block_seconds);
      append.Take(appending + committing);
    }
    // Token by token in turn, so that both meet the same machine.
    for (size_t i = 0; i < single; ++i) {
      const double alone = SecondsOf([&] { plain.Decode(rest.subspan(i, 1)); });
      const double before = AppendSeconds(session);
      double with = SecondsOf([&] { session.Decode(rest.subspan(i, 1), /*all_logits=*/false); });
      with -= AppendSeconds(session) - before;
      if (!counts) continue;
      single_without[i].Take(alone);
      single_with[i].Take(with);
    }
    session.Detach(0);
  }
  const double block_cost = block_with.seconds() / block_without.seconds() - 1.0;
  const double single_cost = Mean(single_with) / Mean(single_without) - 1.0;
  const double append_share = append.seconds() / block_without.seconds();
  if (arguments.json) {
    const nlohmann::json report = {{"block_tokens", window},
                                   {"model_block_seconds", block_without.seconds()},
                                   {"adapter_block_seconds", block_with.seconds()},
                                   {"model_token_seconds", Mean(single_without)},
                                   {"adapter_token_seconds", Mean(single_with)},
                                   {"append_commit_block_seconds", append.seconds()},
                                   {"adapter_block_fraction", block_cost},
                                   {"adapter_token_fraction", single_cost},
                                   {"append_commit_fraction", append_share}};
    std::printf("%s\n", report.dump().c_str());
    return;
  }
  std::printf("%-38s %12s %12s %9s\n", "nothing remembered yet", "model alone", "with adapter", "cost");
  std::printf("%-38s %9.1f ms %9.1f ms %8.1f%%\n", ("a block of " + std::to_string(window) + " tokens").c_str(),
              block_without.seconds() * 1e3, block_with.seconds() * 1e3, block_cost * 100);
  std::printf("%-38s %9.2f ms %9.2f ms %8.1f%%\n", "one token", Mean(single_without) * 1e3, Mean(single_with) * 1e3,
              single_cost * 100);
  std::printf("%-38s %12s %9.1f ms %8.1f%%\n", "appending and committing the block", "", append.seconds() * 1e3,
              append_share * 100);
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
