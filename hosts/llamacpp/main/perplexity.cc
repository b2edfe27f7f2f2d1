// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include "base/temporary_folder.h"
#include "hosts/llamacpp/main/block_reader.h"
#include "hosts/llamacpp/main/commands.h"
#include "hosts/llamacpp/main/memory_copy.h"
#include "hosts/llamacpp/main/memory_text.h"
#include "hosts/llamacpp/main/plain_score.h"
#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/main/text.h"
#include "hosts/llamacpp/main/window.h"
#include "nlohmann/json.hpp"

namespace mneme::llama {
namespace {

struct Arguments {
  const CLI::App* command = nullptr;
  ModelSettings model;
  TextSettings text;
  StoreSettings store;
  std::vector<std::string> memories;
  std::vector<int64_t> sizes = {16, 2048, 8192};
  std::vector<int64_t> native;
  bool baseline = false;
  int64_t score = 2048;
  std::string losses;
  bool json = false;
};

struct Row {
  std::string memory;
  int64_t tokens = 0;  // retrievable when scoring began
  int64_t first = 0;   // position in the text of the first token, which is not scored
  Score score;
};

// Goes on where an earlier process ended: the block before the memory's end is decoded once more to refill the local
// window, then the text that follows is scored. It is appended to a copy of the memory.
Row ScoreStored(const Arguments& arguments, Session& session, const ThreadsPtr& threads, const Store& store,
                const std::string& name, const std::vector<llama_token>& tokens) {
  const Memory memory(store, name, session, /*create=*/false, 0, "");
  memory.CheckGiven(*arguments.command, session, 0, "");
  CheckSameText(memory, session, tokens);
  const MemoryCopy copy(session, memory, threads, tokens);
  session.Attach(0, copy.memory().get(), MNEME_LLAMA_MODE_APPEND);
  ResumeWindow(session, copy.memory());
  const mneme_memory_info info = memory.Info();
  const auto begin = static_cast<size_t>(info.next_token);
  const size_t count = std::min(static_cast<size_t>(arguments.score), tokens.size() - begin);
  if (count < 2) throw Failure("after the memory's " + std::to_string(begin) + " tokens the text has none to score");
  Row row{name, info.tokens - std::min<int64_t>(session.window(), info.tokens), info.next_token, {}};
  row.score = ScoreText(session, std::span(tokens).subspan(begin, count), "scoring " + name);
  session.Detach(0);
  return row;
}

// The whole run in this process: memory of `size` tokens while the text before is taken in, and while the last tokens
// are scored.
Row ScoreFresh(const Arguments& arguments, Session& session, const ThreadsPtr& threads, int64_t size,
               const std::vector<llama_token>& tokens) {
  const TemporaryFolder folder;
  const Store store(folder.path(), threads);
  const std::string name = size == 0 ? "unbounded" : std::to_string(size) + " tokens";
  const Memory memory(store, "memory", session, /*create=*/true, size, arguments.store.stored_type);
  const size_t begin = tokens.size() - static_cast<size_t>(arguments.score);
  Ingest(session, memory, std::span(tokens).first(begin), name, MNEME_DURABILITY_BUFFERED, nullptr);
  const mneme_memory_info info = memory.Info();
  Row row{name, info.tokens - std::min<int64_t>(session.window(), info.tokens), info.next_token, {}};
  row.score = ScoreText(session, std::span(tokens).subspan(begin), "scoring " + name);
  session.Detach(0);
  return row;
}

// What llama.cpp alone predicts of the same tokens.
void ScorePlain(const Arguments& arguments, llama_model* model, const std::vector<llama_token>& tokens,
                std::vector<Row>* rows) {
  const size_t begin = tokens.size() - static_cast<size_t>(arguments.score);
  const auto first = static_cast<int64_t>(begin);
  if (arguments.baseline) {
    rows->push_back({"baseline", 0, first, ScoreBaseline(model, arguments.model, tokens, begin)});
  }
  for (const int64_t context : arguments.native) {
    rows->push_back(
        {"native " + std::to_string(context), 0, first, ScoreNative(model, arguments.model, context, tokens, begin)});
  }
}

// What every row was computed with. Nothing is drawn at random.
nlohmann::json Settings(const Arguments& arguments) {
  const ModelSettings& model = arguments.model;
  return {{"version", mneme_version()},    {"llama_cpp", llama_print_system_info()},
          {"model", model.model},          {"threads", ThreadsOf(model)},
          {"layers", model.layers},        {"policy", model.policy},
          {"distance", model.distance},    {"top_k", model.top_k},
          {"fusion", model.fusion},        {"bias", model.memory_bias},
          {"decay", model.decay},          {"decay_beyond", model.decay_beyond},
          {"pinned", model.pinned},        {"window", model.window},
          {"text", arguments.text.files},  {"bytes", arguments.text.bytes},
          {"last", arguments.text.last},   {"score", arguments.score},
          {"store", arguments.store.path}, {"stored_type", arguments.store.stored_type}};
}

void PrintJson(const std::vector<Row>& rows, const nlohmann::json& settings) {
  nlohmann::json report = nlohmann::json::array();
  for (const Row& row : rows) {
    report.push_back({{"memory", row.memory},
                      {"tokens", row.tokens},
                      {"scored", row.score.tokens},
                      {"nll", row.score.nll},
                      {"perplexity", std::exp(row.score.nll)},
                      {"seconds", row.score.seconds},
                      {"settings", settings}});
  }
  std::printf("%s\n", report.dump().c_str());
}

void Print(const std::vector<Row>& rows) {
  std::printf("%-20s %14s %8s %12s %11s %9s\n", "memory", "memory tokens", "scored", "nats/token", "perplexity",
              "tokens/s");
  for (const Row& row : rows) {
    std::printf("%-20s %14lld %8lld %12.4f %11.3f %9.0f\n", row.memory.c_str(), static_cast<long long>(row.tokens),
                static_cast<long long>(row.score.tokens), row.score.nll, std::exp(row.score.nll),
                static_cast<double>(row.score.tokens) / row.score.seconds);
  }
}

void CheckArguments(const Arguments& arguments) {
  const CLI::App& command = *arguments.command;
  CheckModelOptions(command, arguments.model);
  const bool stored = !arguments.store.path.empty();
  if (stored && arguments.memories.empty()) throw UsageError("--store needs --memories");
  if (!stored && !arguments.memories.empty()) throw UsageError("--memories needs --store");
  for (const char* option : {"--native", "--baseline"}) {
    if (stored && Given(command, option)) {
      throw UsageError(std::string(option) + " scores the text's last tokens and has no effect with --store");
    }
  }
  for (const char* option : {"--memory-tokens", "--stored-type"}) {
    if (stored && Given(command, option)) {
      throw UsageError(std::string(option) + " is for new memories and has no effect with --store");
    }
  }
}

void Run(const Arguments& arguments) {
  CheckArguments(arguments);
  const ModelPtr model = LoadModel(arguments.model.model);
  const std::vector<llama_token> tokens = ReadText(model.get(), arguments.text);
  const ThreadsPtr threads = MakeThreads(arguments.model);
  Session session(model.get(), arguments.model);
  session.Share(threads);
  std::optional<LossFile> losses;
  if (!arguments.losses.empty()) losses.emplace(arguments.losses);
  std::vector<Row> rows;
  if (!arguments.store.path.empty()) {
    const Store store(arguments.store.path, threads, StoreUse::kRead);
    for (const std::string& name : arguments.memories) {
      rows.push_back(ScoreStored(arguments, session, threads, store, name, tokens));
    }
  } else {
    if (arguments.score < 2 || static_cast<size_t>(arguments.score) >= tokens.size()) {
      throw UsageError("--score " + std::to_string(arguments.score) + " does not fit a text of " +
                       std::to_string(tokens.size()) + " tokens");
    }
    // Asked for without a size, llama.cpp alone is scored alone.
    if (Given(*arguments.command, "--memory-tokens") || (arguments.native.empty() && !arguments.baseline)) {
      for (const int64_t size : arguments.sizes) rows.push_back(ScoreFresh(arguments, session, threads, size, tokens));
    }
    ScorePlain(arguments, model.get(), tokens, &rows);
  }
  if (losses) {
    for (size_t row = 0; row < rows.size(); ++row) losses->Add(row, rows[row].first, rows[row].score);
    losses->Finish();
  }
  if (arguments.json) return PrintJson(rows, Settings(arguments));
  Print(rows);
}

}  // namespace

void AddPerplexity(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = program.add_subcommand(
      "perplexity",
      "How well a text is predicted with memories of several sizes. With --store: go on after what the named memories "
      "hold, which stay as they are: copies of them are appended to. Without: take in all but the text's last tokens "
      "once for every size, and score "
      "those. The smallest memory, the pinned first tokens alone, is the baseline.");
  AddModelOptions(command, &arguments->model);
  AddTextOptions(command, &arguments->text);
  AddStoreOptions(command, &arguments->store, /*required=*/false);
  command->add_option("--memories", arguments->memories, "names of stored memories")->delimiter(',');
  command->add_option("--memory-tokens", arguments->sizes, "sizes without --store; 0: unbounded")
      ->delimiter(',')
      ->check(AtLeast(0))
      ->capture_default_str();
  command
      ->add_option(
          "--native", arguments->native,
          "also score with llama.cpp alone, in contexts of so many tokens: each quarter of a context after the "
          "three quarters before it. Without --memory-tokens: only that")
      ->delimiter(',')
      ->check(CLI::Range(8, 1 << 24));
  command->add_flag("--baseline", arguments->baseline,
                    "the same with a cache that keeps the pinned tokens and a sliding window");
  command->add_option("--losses", arguments->losses,
                      "write the loss of every token: tab-separated, with the row of the table from 0, the position in "
                      "the text, the token id and the negative log-likelihood in nats");
  command->add_option("--score", arguments->score, "tokens to score")->check(AtLeast(2))->capture_default_str();
  command->add_flag("--json", arguments->json, "print the table as JSON");
  arguments->command = command;
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace mneme::llama
