#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>

#include "capi/hosts/llamacpp/main/commands.h"
#include "capi/hosts/llamacpp/main/session.h"
#include "capi/hosts/llamacpp/main/temporary_folder.h"
#include "capi/hosts/llamacpp/main/text.h"
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

// Seconds of one round, each the best of all rounds: what disturbs a measurement only ever adds to it.
struct Times {
  double block = 1e9;   // one block of prefill
  double single = 1e9;  // decoding one token, mean over a round
  double append = 1e9;  // of `block`: appending and committing

  void Take(const Times& round) {
    block = std::min(block, round.block);
    single = std::min(single, round.single);
    append = std::min(append, round.append);
  }
};

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The same context without an adapter.
class Plain {
 public:
  Plain(llama_model* model, const ModelSettings& settings) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 2 * static_cast<uint32_t>(settings.window);
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(settings.window);
    params.kv_unified = true;
    params.n_threads = params.n_threads_batch = ThreadsOf(settings);
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    context_.reset(llama_init_from_model(model, params));
    if (context_ == nullptr) throw Failure("llama.cpp cannot make a context");
  }
  void Clear() { llama_memory_clear(llama_get_memory(context_.get()), true); }
  void Decode(std::span<const llama_token> tokens) {
    const llama_batch batch =
        llama_batch_get_one(const_cast<llama_token*>(tokens.data()), static_cast<int32_t>(tokens.size()));
    if (llama_decode(context_.get(), batch) != 0) throw Failure("llama_decode failed");
  }

 private:
  ContextPtr context_;
};

template <typename Decode>
Times Measure(std::span<const llama_token> block, std::span<const llama_token> rest, const Decode& decode) {
  Times times;
  times.block = Seconds([&] { decode(block); });
  times.single = Seconds([&] {
                   for (size_t i = 0; i < rest.size(); ++i) decode(rest.subspan(i, 1));
                 }) /
                 static_cast<double>(rest.size());
  return times;
}

void Run(const Arguments& arguments) {
  const ModelPtr model = LoadModel(arguments.model.model);
  const std::vector<llama_token> tokens = ReadText(model.get(), arguments.text);
  const auto window = static_cast<size_t>(arguments.model.window);
  const size_t single = std::min(static_cast<size_t>(std::max(arguments.single, 1)), window);
  if (tokens.size() < window + single) throw Failure("the text is shorter than a block");
  const auto block = std::span(tokens).first(window);
  const auto rest = std::span(tokens).subspan(window, single);

  Session session(model.get(), arguments.model);
  Plain plain(model.get(), arguments.model);
  const TemporaryFolder folder;
  const Store store(folder.path(), ThreadsOf(arguments.model));
  Times without;
  Times with;
  for (int32_t round = 0; round <= arguments.rounds; ++round) {
    plain.Clear();
    const Times one = Measure(block, rest, [&](std::span<const llama_token> some) { plain.Decode(some); });

    // The window holds everything, so that nothing of the memory is visible yet; rows are appended all the same.
    const Memory memory(store, "round " + std::to_string(round), session, /*create=*/true, 0, "f16");
    session.Attach(0, memory.get(), MNEME_LLAMA_APPEND);
    mneme_llama_stats_t before = MNEME_LLAMA_STATS_INIT;
    CheckAdapter(mneme_llama_stats(session.adapter(), &before));
    Times other;
    other.block = Seconds([&] { session.Decode(block, /*all_logits=*/false); });
    mneme_llama_stats_t after = MNEME_LLAMA_STATS_INIT;
    CheckAdapter(mneme_llama_stats(session.adapter(), &after));
    other.append = static_cast<double>(after.append_us - before.append_us) * 1e-6;
    other.block -= other.append;
    other.append += Seconds([&] { CheckEngine(mneme_commit(memory.get(), MNEME_BUFFERED, nullptr)); });
    CheckAdapter(mneme_llama_stats(session.adapter(), &before));
    other.single = Seconds([&] {
                     for (size_t i = 0; i < rest.size(); ++i) session.Decode(rest.subspan(i, 1), false);
                   }) /
                   static_cast<double>(rest.size());
    CheckAdapter(mneme_llama_stats(session.adapter(), &after));
    other.single -= static_cast<double>(after.append_us - before.append_us) * 1e-6 / static_cast<double>(rest.size());
    session.Detach(0);
    if (round == 0) continue;  // pages and caches are warm from here on
    without.Take(one);
    with.Take(other);
  }
  const double block_cost = with.block / without.block - 1.0;
  const double single_cost = with.single / without.single - 1.0;
  const double append_share = with.append / without.block;
  if (arguments.json) {
    const nlohmann::json report = {{"block_tokens", window},
                                   {"model_block_seconds", without.block},
                                   {"adapter_block_seconds", with.block},
                                   {"model_token_seconds", without.single},
                                   {"adapter_token_seconds", with.single},
                                   {"append_commit_block_seconds", with.append},
                                   {"adapter_block_fraction", block_cost},
                                   {"adapter_token_fraction", single_cost},
                                   {"append_commit_fraction", append_share}};
    std::printf("%s\n", report.dump().c_str());
    return;
  }
  std::printf("%-38s %12s %12s %9s\n", "nothing remembered yet", "model alone", "with adapter", "cost");
  std::printf("%-38s %9.1f ms %9.1f ms %8.1f%%\n", ("a block of " + std::to_string(window) + " tokens").c_str(),
              without.block * 1e3, with.block * 1e3, block_cost * 100);
  std::printf("%-38s %9.2f ms %9.2f ms %8.1f%%\n", "one token", without.single * 1e3, with.single * 1e3,
              single_cost * 100);
  std::printf("%-38s %12s %9.1f ms %8.1f%%\n", "appending and committing the block", "", with.append * 1e3,
              append_share * 100);
}

}  // namespace

void AddOverhead(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = program.add_subcommand(
      "overhead", "What the adapter costs while the memory has nothing to say, and what appending and committing cost.");
  AddModelOptions(command, &arguments->model);
  AddTextOptions(command, &arguments->text);
  command->add_option("--rounds", arguments->rounds, "measure so often, with and without in turn; the best counts")
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "print the figures as JSON");
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace mneme::llama
