// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_PROFILE_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_PROFILE_H_

#include <string>

#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/main/settings.h"

namespace mneme::llama {

// The name under which a memory keeps the settings that it was made with.
inline constexpr const char* kSettingsAttachment = "llama.cpp/settings";

// The settings as JSON: a profile, and what a memory keeps.
std::string SettingsText(const ModelSettings& settings);

// Takes settings from JSON, but for those that were given on the command line. `source` is for messages.
// Throws UsageError that names the key and what was expected.
void TakeSettings(const std::string& text, const std::string& source, const CLI::App& command, ModelSettings* settings);

// The same from the file that --profile names, if any.
void TakeProfile(const CLI::App& command, ModelSettings* settings);

// Completes what the command line gives by what the memory keeps, unless there is a --profile, and checks the result
// (CheckModelOptions). A store or memory that is not there keeps nothing; `store` may be empty. Call it before the
// store is opened. Throws UsageError.
void CompleteSettings(const CLI::App& command, const std::string& store, const std::string& memory,
                      ModelSettings* settings);

// Has a memory that keeps no settings keep these. The next commit makes them durable.
void KeepSettings(const Memory& memory, const ModelSettings& settings);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_PROFILE_H_
