#include "capi/hosts/llamacpp/main/settings.h"

namespace mneme::llama {

void AddModelFileOptions(CLI::App* command, ModelSettings* settings) {
  command->add_option("--model", settings->model, "GGUF file")->required()->check(CLI::ExistingFile);
  command->add_option("--threads", settings->threads, "threads; 0: one a core")->capture_default_str();
}

void AddModelOptions(CLI::App* command, ModelSettings* settings) {
  AddModelFileOptions(command, settings);
  command->add_option("--layers", settings->layers, "layers with a memory; default: all global ones")->delimiter(',');
  command->add_option("--policy", settings->policy, "where retrieved rows stand: fixed, as-stored, window-start, clamped")
      ->check(CLI::IsMember({"fixed", "as-stored", "window-start", "clamped"}))
      ->capture_default_str();
  command->add_option("--distance", settings->distance, "tokens, for fixed and clamped")->capture_default_str();
  command->add_option("-k,--top-k", settings->top_k, "rows retrieved a query head and token")->capture_default_str();
  command->add_option("--fusion", settings->fusion, "joint, memory-only or local-only")
      ->check(CLI::IsMember({"joint", "memory-only", "local-only"}))
      ->capture_default_str();
  command->add_option("--bias", settings->memory_bias, "added to retrieved logits")->capture_default_str();
  command->add_option("--decay", settings->decay, "nats a doubling of age beyond --decay-beyond")->capture_default_str();
  command->add_option("--decay-beyond", settings->decay_beyond, "tokens")->capture_default_str();
  command->add_option("--pinned", settings->pinned, "first tokens of a new memory that are never evicted")
      ->capture_default_str();
  command->add_option("--window", settings->window, "tokens of the block before that stay in the local window; also the "
                                                    "size of a block")
      ->capture_default_str();
}

void AddTextOptions(CLI::App* command, TextSettings* settings) {
  command->add_option("--text", settings->file, "text file")->required()->check(CLI::ExistingFile);
  command->add_option("--bytes", settings->bytes, "read only the first bytes of the file; 0: all")->capture_default_str();
  command->add_option("--last", settings->last, "of these, use only the last tokens; 0: all")->capture_default_str();
}

void AddStoreOptions(CLI::App* command, StoreSettings* settings, bool required) {
  auto* store = command->add_option("--store", settings->path, "folder of the store");
  if (required) store->required();
  command->add_option("--stored-type", settings->stored_type, "element type of a new memory's rows")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "i8"}))
      ->capture_default_str();
}

}  // namespace mneme::llama
