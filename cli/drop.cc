// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <string>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/store_handle.h"

namespace mneme::cli {
namespace {

// "12,345 tokens, 1.5 MiB". Opened for reading only, so that nobody waits for the store while the user thinks.
std::string Describe(const Arguments& arguments, const std::string& name, const StoreHandle::Log& log) {
  const StoreHandle store(arguments.store, MNEME_MODE_READ_ONLY, log);
  try {
    const mneme_memory_info info = MemoryHandle(store, name).Info();
    return Counted(info.tokens, "token", "tokens") + ", " + HumanBytes(info.bytes);
  } catch (const CallError& error) {
    // To be rid of it may be just what the user wants.
    if (error.status() != MNEME_STATUS_DATA_LOSS) throw;
    return "damaged";
  }
}

bool Confirmed(const std::string& question) {
  std::fputs(question.c_str(), stderr);
  std::fflush(stderr);
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

}  // namespace

int Drop(const Arguments& arguments, Console& console) {
  const StoreHandle::Log log = [&](const std::string& text) { console.Message(text); };
  if (!arguments.yes) {
    if (isatty(STDIN_FILENO) != 1) {
      console.Message("drop: nobody to ask, as the input is no terminal; --yes drops without asking");
      return kExitUsage;
    }
    for (const std::string& name : arguments.names) {
      const std::string described = EscapeName(name) + " (" + Describe(arguments, name, log) + ")";
      if (Confirmed("Drop memory " + described + " for good? [y/N] ")) continue;
      console.Message("nothing was dropped");
      return kExitError;
    }
  }
  StoreHandle store(arguments.store, MNEME_MODE_READ_WRITE, log);
  store.Drop(arguments.names);
  store.Close();
  if (arguments.json && arguments.names.size() == 1) {
    PrintJson({{"name", arguments.names.front()}, {"dropped", true}});
  } else if (arguments.json) {
    PrintJson({{"names", arguments.names}, {"dropped", true}});
  } else {
    for (const std::string& name : arguments.names) std::printf("%s: dropped\n", EscapeName(name).c_str());
  }
  return kExitOk;
}

}  // namespace mneme::cli
