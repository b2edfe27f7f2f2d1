// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_COMMANDS_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_COMMANDS_H_

#include "CLI/CLI.hpp"

namespace mneme::llama {

// Each adds one subcommand to the program. Its callback does the work and throws Failure.
void AddIngest(CLI::App& program);      // text → memory
void AddPerplexity(CLI::App& program);  // how well text is predicted with a memory
void AddGenerate(CLI::App& program);    // prompt → text with a memory attached
void AddCheck(CLI::App& program);       // whether a memory holds a text, and all of it readable
void AddOverhead(CLI::App& program);    // what the adapter costs while nothing is remembered yet
void AddSpeed(CLI::App& program);       // tokens a second with a long past, beside native context
void AddRecord(CLI::App& program);      // text → a file of keys and queries, for tests and measurements of indices

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_COMMANDS_H_
