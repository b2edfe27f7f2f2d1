// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <memory>

#include "hosts/llamacpp/main/block_reader.h"
#include "hosts/llamacpp/main/commands.h"
#include "hosts/llamacpp/main/memory_text.h"
#include "hosts/llamacpp/main/profile.h"
#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/main/text.h"
#include "nlohmann/json.hpp"

namespace mneme::llama {
namespace {

struct Arguments {
  const CLI::App* command = nullptr;
  ModelSettings model;
  TextSettings text;
  StoreSettings store;
  std::string memory;
  bool json = false;
};

void Run(Arguments arguments) {
  CompleteSettings(*arguments.command, arguments.store.path, arguments.memory, &arguments.model);
  const ModelPtr model = LoadModel(arguments.model.model);
  const std::vector<llama_token> tokens = ReadText(model.get(), arguments.text);
  const Session session(model.get(), arguments.model);
  const Store store(arguments.store.path, ThreadsOf(arguments.model), StoreUse::kRead);
  const Memory memory(store, arguments.memory, session, /*create=*/false, 0, "");
  CheckSameText(memory, session, tokens);
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  CheckEngine(mneme_store_verify(store.get(), nullptr, nullptr, &report));
  const mneme_memory_info info = memory.Info();
  if (arguments.json) {
    const nlohmann::json found = {{"memory", arguments.memory},
                                  {"next_token", info.next_token},
                                  {"tokens", info.tokens},
                                  {"damaged_values", report.damaged_values},
                                  {"bytes_read", report.bytes_read}};
    std::printf("%s\n", found.dump().c_str());
  } else {
    std::printf("%s: tokens 0 to %lld of the text, %lld held; %lld damaged values in %.1f MB read\n",
                arguments.memory.c_str(), static_cast<long long>(info.next_token), static_cast<long long>(info.tokens),
                static_cast<long long>(report.damaged_values), static_cast<double>(report.bytes_read) / 1e6);
  }
  if (report.damaged_values > 0 || report.damaged_memories > 0) throw Failure("the store is damaged");
}

}  // namespace

void AddCheck(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = program.add_subcommand(
      "check", "Whether a memory holds the beginning of a text token by token, and the whole store is undamaged.");
  AddModelFileOptions(command, &arguments->model);
  AddLayersOption(command, &arguments->model);
  AddTextOptions(command, &arguments->text);
  AddStoreOption(command, &arguments->store, /*required=*/true);
  command->add_option("--memory", arguments->memory, "name of the memory")->required();
  command->add_flag("--json", arguments->json, "print the finding as JSON");
  arguments->command = command;
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace mneme::llama
