// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <fstream>
#include <memory>
#include <span>

#include "hosts/llamacpp/main/block_reader.h"
#include "hosts/llamacpp/main/commands.h"
#include "hosts/llamacpp/main/memory_text.h"
#include "hosts/llamacpp/main/profile.h"
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
  std::string memory;
  int64_t memory_tokens = 0;
  int64_t tokens = 0;
  bool append = false;
  bool synced = false;
  std::string acknowledge;
  bool json = false;
};

// The part of the text that the memory lacks.
std::span<const llama_token> MissingTokens(const Arguments& arguments, const Memory& memory, const Session& session,
                                           std::span<const llama_token> text) {
  if (arguments.append) return text.subspan(static_cast<size_t>(TokensAtEnd(memory, session, text)));
  if (const int64_t taken_back = AlignWithText(memory, session, text); taken_back > 0) {
    std::fprintf(stderr, "%s: the text grew; its last %lld tokens are taken in again\n", arguments.memory.c_str(),
                 static_cast<long long>(taken_back));
  }
  return text.subspan(static_cast<size_t>(memory.Info().next_token));
}

void Run(Arguments arguments) {
  CompleteSettings(*arguments.command, arguments.store.path, arguments.memory, &arguments.model);
  const ModelPtr model = LoadModel(arguments.model.model);
  std::vector<llama_token> tokens = ReadText(model.get(), arguments.text);
  if (static_cast<size_t>(arguments.tokens) > tokens.size()) {
    throw UsageError("--tokens: the text has only " + std::to_string(tokens.size()) + " tokens");
  }
  if (arguments.tokens > 0) tokens.resize(static_cast<size_t>(arguments.tokens));
  std::ofstream acknowledgements;
  if (!arguments.acknowledge.empty()) {
    acknowledgements.open(arguments.acknowledge, std::ios::app);
    if (!acknowledgements) throw Failure("--ack-file: cannot write " + arguments.acknowledge);
  }
  const ThreadsPtr threads = MakeThreads(arguments.model);
  Session session(model.get(), arguments.model);
  session.Share(threads);
  const Store store(arguments.store.path, threads);
  const Memory memory(store, arguments.memory, session, /*create=*/true, arguments.memory_tokens,
                      arguments.store.stored_type);
  memory.CheckGiven(*arguments.command, session, arguments.memory_tokens, arguments.store.stored_type);
  KeepSettings(memory, arguments.model);
  const std::span<const llama_token> missing = MissingTokens(arguments, memory, session, tokens);

  const IngestTimes times =
      Ingest(session, memory, missing, arguments.memory,
             arguments.synced ? MNEME_DURABILITY_SYNCED : MNEME_DURABILITY_BUFFERED, [&](int64_t durable) {
               if (!acknowledgements.is_open()) return;
               acknowledgements << durable << std::endl;
               if (!acknowledgements) throw Failure("--ack-file: cannot write " + arguments.acknowledge);
             });
  if (!missing.empty()) {
    SaveWindow(session, memory, arguments.synced ? MNEME_DURABILITY_SYNCED : MNEME_DURABILITY_BUFFERED);
  }
  const mneme_memory_info info = memory.Info();
  if (arguments.json) {
    const nlohmann::json report = {{"memory", arguments.memory},    {"ingested", missing.size()},
                                   {"next_token", info.next_token}, {"tokens", info.tokens},
                                   {"bytes", info.bytes},           {"seconds", times.total},
                                   {"model_seconds", times.model},  {"adapter_seconds", times.adapter},
                                   {"append_seconds", times.append}};
    std::printf("%s\n", report.dump().c_str());
    return;
  }
  std::printf("%s: %lld tokens taken in, %lld held (%.1f MB)\n", arguments.memory.c_str(),
              static_cast<long long>(missing.size()), static_cast<long long>(info.tokens),
              static_cast<double>(info.bytes) / 1e6);
  if (times.model > 0) {
    std::printf(
        "  time: model %.1f s, attending and capturing %.1f s, append and commit %.2f s (%.1f %% of the model's)\n",
        times.model, times.adapter, times.append, 100.0 * times.append / times.model);
  }
}

}  // namespace

void AddIngest(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = program.add_subcommand(
      "ingest", "Take text into a memory. Every block is committed; a killed run goes on where it was.");
  AddModelOptions(command, &arguments->model);
  AddTextsOptions(command, &arguments->text);
  AddStoreOptions(command, &arguments->store, /*required=*/true);
  command->add_option("--memory", arguments->memory, "name of the memory; created if there is none")->required();
  command
      ->add_option("--memory-tokens", arguments->memory_tokens,
                   "a new memory's size beyond the window, pinned tokens included; 0: unbounded")
      ->check(AtLeast(0));
  command->add_option("--tokens", arguments->tokens, "end with this token of the text; 0: its last")->check(AtLeast(0));
  command->add_flag("--append", arguments->append,
                    "take the text in after another that the memory holds; nothing is taken in twice where a run was "
                    "killed and is repeated");
  command->add_flag("--synced", arguments->synced, "commits survive the loss of power, not only of the process");
  command->add_option("--ack-file", arguments->acknowledge, "append the number of durable tokens after every commit");
  command->add_flag("--json", arguments->json, "print the report as JSON");
  arguments->command = command;
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace mneme::llama
