// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/settings.h"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "ggml.h"
#include "hosts/llamacpp/main/failure.h"
#include "hosts/llamacpp/main/profile.h"

namespace mneme::llama {

CLI::Validator Finite() {
  return AtLeast(-std::numeric_limits<double>::infinity());
}

CLI::Validator AtLeast(double least) {
  const auto check = [least](const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (end != text.c_str() && *end == '\0' && std::isfinite(value) && value >= least) return std::string();
    std::string expected = "expected a finite number";
    if (std::isfinite(least)) expected += " of at least " + CLI::detail::to_string(least);
    return expected + ", got " + text;
  };
  return CLI::Validator(check, "", "AtLeast");
}

void AddModelFileOptions(CLI::App* command, ModelSettings* settings) {
  command->add_option("--model", settings->model, "GGUF file")->required()->check(CLI::ExistingFile);
  command
      ->add_option("--threads", settings->threads,
                   "threads; 0: one for each core that this process may use and others leave idle")
      ->check(CLI::Range(0, GGML_MAX_N_THREADS))
      ->capture_default_str();
}

void AddLayersOption(CLI::App* command, ModelSettings* settings) {
  command->add_option("--layers", settings->layers, "layers with a memory; default: all global ones")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber);
}

void AddModelOptions(CLI::App* command, ModelSettings* settings) {
  AddModelFileOptions(command, settings);
  AddLayersOption(command, settings);
  command
      ->add_option("--profile", settings->profile,
                   "JSON file with any of these settings, and rules of single layers and heads; what is given on the "
                   "command line comes first")
      ->check(CLI::ExistingFile);
  // Before the command runs.
  command->parse_complete_callback([command, settings] { TakeProfile(*command, settings); });
  command
      ->add_option("--policy", settings->policy, "where retrieved rows stand: fixed, as-stored, window-start, clamped")
      ->check(CLI::IsMember({"fixed", "as-stored", "window-start", "clamped"}))
      ->capture_default_str();
  command->add_option("--distance", settings->distance, "tokens, for fixed and clamped")
      ->check(AtLeast(0))
      ->capture_default_str();
  command->add_option("-k,--top-k", settings->top_k, "rows retrieved a query head and token")
      ->check(AtLeast(1))
      ->capture_default_str();
  command->add_option("--fusion", settings->fusion, "joint, memory-only or local-only")
      ->check(CLI::IsMember({"joint", "memory-only", "local-only"}))
      ->capture_default_str();
  command->add_option("--bias", settings->memory_bias, "added to retrieved logits")
      ->check(Finite())
      ->capture_default_str();
  command->add_option("--decay", settings->decay, "nats a doubling of age beyond --decay-beyond")
      ->check(AtLeast(0))
      ->capture_default_str();
  command->add_option("--decay-beyond", settings->decay_beyond, "tokens")->check(AtLeast(1))->capture_default_str();
  command->add_option("--pinned", settings->pinned, "first tokens of a new memory that are never evicted")
      ->check(AtLeast(0))
      ->capture_default_str();
  command
      ->add_option("--window", settings->window,
                   "tokens of the block before that stay in the local window; also the "
                   "size of a block")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
}

namespace {

CLI::Option* AddTextOption(CLI::App* command, TextSettings* settings, const char* description) {
  return command->add_option("--text", settings->files, description)
      ->required()
      ->check(CLI::ExistingFile | CLI::IsMember({"-"}));
}

void AddTextRangeOptions(CLI::App* command, TextSettings* settings) {
  command->add_option("--bytes", settings->bytes, "read only the first bytes of the file; 0: all")
      ->check(AtLeast(0))
      ->capture_default_str();
  command->add_option("--last", settings->last, "of these, use only the last tokens; 0: all")
      ->check(AtLeast(0))
      ->capture_default_str();
}

}  // namespace

void AddTextOptions(CLI::App* command, TextSettings* settings) {
  AddTextOption(command, settings, "UTF-8 text file; -: the standard input")->expected(1);
  AddTextRangeOptions(command, settings);
}

void AddTextsOptions(CLI::App* command, TextSettings* settings) {
  AddTextOption(command, settings, "UTF-8 text files, read one after the other; -: the standard input");
  AddTextRangeOptions(command, settings);
}

void AddStoreOption(CLI::App* command, StoreSettings* settings, bool required) {
  auto* store = command->add_option("--store", settings->path, "folder of the store");
  if (required) store->required();
}

void AddStoreOptions(CLI::App* command, StoreSettings* settings, bool required) {
  AddStoreOption(command, settings, required);
  command->add_option("--stored-type", settings->stored_type, "element type of a new memory's rows")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "i8"}))
      ->capture_default_str();
}

bool Given(const CLI::App& command, const std::string& option) {
  const CLI::Option* found = command.get_option_no_throw(option);
  return found != nullptr && found->count() > 0;
}

void CheckModelOptions(const CLI::App& command, const ModelSettings& settings) {
  const auto refuse = [&](const char* option, const std::string& reason) {
    if (Given(command, option)) throw UsageError(std::string(option) + " has no effect " + reason);
  };
  if (settings.fusion == "local-only") {
    for (const char* option : {"--top-k", "--distance", "--decay"}) refuse(option, "with --fusion local-only");
  }
  if (settings.fusion != "joint") refuse("--bias", "with --fusion " + settings.fusion);
  if (settings.policy != "fixed" && settings.policy != "clamped") {
    refuse("--distance", "with --policy " + settings.policy);
  }
  if (settings.decay == 0.0f) refuse("--decay-beyond", "without --decay");
}

}  // namespace mneme::llama
