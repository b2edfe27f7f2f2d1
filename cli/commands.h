// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CLI_COMMANDS_H_
#define MNEME_CLI_COMMANDS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cli/console.h"

namespace mneme::cli {

enum ExitCode { kExitOk = 0, kExitError = 1, kExitUsage = 2, kExitDamage = 3 };

// What the command line said; each command reads the fields that it has options for.
struct Arguments {
  std::string store;
  std::string name;
  std::vector<std::string> names;
  std::string file;
  bool overwrite = false;
  bool create = false;
  bool all = false;
  bool json = false;
  bool prometheus = false;
  bool yes = false;
  std::string folder;  // of backups
  int64_t backup = 0;  // its number; 0: the newest
  int64_t keep = 0;
  int threads = 1;
};

// Each prints its result to stdout and returns an exit code. CallError is for the caller to tell.

// Read-only, and so also beside a writer.
int List(const Arguments& arguments, Console& console);
int Info(const Arguments& arguments, Console& console);
int Stats(const Arguments& arguments, Console& console);
int Verify(const Arguments& arguments, Console& console);
int Export(const Arguments& arguments, Console& console);

// Of a folder of backups.
int Backups(const Arguments& arguments, Console& console);
int Restore(const Arguments& arguments, Console& console);

// As the store's one writer.
int Backup(const Arguments& arguments, Console& console);
int Maintain(const Arguments& arguments, Console& console);
int Evict(const Arguments& arguments, Console& console);
int Drop(const Arguments& arguments, Console& console);
int Compact(const Arguments& arguments, Console& console);
int Import(const Arguments& arguments, Console& console);

}  // namespace mneme::cli

#endif  // MNEME_CLI_COMMANDS_H_
