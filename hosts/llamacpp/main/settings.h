// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_SETTINGS_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_SETTINGS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace mneme::llama {

// Rules of one layer, for all query heads (one value) or each; empty: as for the other layers.
struct LayerSettings {
  int32_t layer = 0;
  std::vector<int64_t> top_k;
  std::vector<float> distance;
  std::vector<float> memory_bias;
  std::vector<float> decay;

  bool operator==(const LayerSettings&) const = default;
};

// What every command of mneme-llama may be told about the model and the use of its memory.
struct ModelSettings {
  std::string model;
  int32_t threads = 0;  // 0: DefaultThreads
  std::vector<int32_t> layers;
  std::string policy = "fixed";
  float distance = 2048.0f;
  int64_t top_k = 32;
  std::string fusion = "joint";
  float memory_bias = 0.0f;
  float decay = 0.0f;
  float decay_beyond = 4096.0f;
  int64_t pinned = 16;
  int32_t window = 512;
  std::vector<LayerSettings> rules;  // of single layers (profile.h)
  std::string profile;               // a file; empty: none
};

// Which tokens a command reads: the last `last` of the first `bytes` bytes of a file; 0: all. Several files are read
// one after the other; "-" is the standard input.
struct TextSettings {
  std::vector<std::string> files;
  int64_t bytes = 0;
  int64_t last = 0;
};

struct StoreSettings {
  std::string path;
  std::string stored_type = "f16";
};

// Checks of option values: a finite number, and one that is at least `least`.
CLI::Validator Finite();
CLI::Validator AtLeast(double least);

// --model and --threads alone.
void AddModelFileOptions(CLI::App* command, ModelSettings* settings);
void AddLayersOption(CLI::App* command, ModelSettings* settings);
void AddModelOptions(CLI::App* command, ModelSettings* settings);
void AddTextOptions(CLI::App* command, TextSettings* settings);
// The same for a command that reads several files.
void AddTextsOptions(CLI::App* command, TextSettings* settings);
void AddStoreOption(CLI::App* command, StoreSettings* settings, bool required);
// --store, and --stored-type for a memory that the command makes.
void AddStoreOptions(CLI::App* command, StoreSettings* settings, bool required);

// Whether the option was given on the command line; false for one that the command does not have.
bool Given(const CLI::App& command, const std::string& option);
// Throws UsageError if an option of AddModelOptions was given that the others make useless.
void CheckModelOptions(const CLI::App& command, const ModelSettings& settings);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_SETTINGS_H_
