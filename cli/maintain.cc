// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/progress_bar.h"
#include "cli/store_handle.h"

namespace mneme::cli {
namespace {

struct Maintained {
  mneme_memory_info before;
  mneme_memory_info after;
};

Maintained MaintainOne(const StoreHandle& store, const std::string& name, Console& console) {
  MemoryHandle memory(store, name);
  Maintained result{memory.Info(), {}};
  {
    ProgressBar bar(console, EscapeName(name), HumanCount);
    memory.Maintain(ProgressBar::Report, &bar);
  }
  result.after = memory.Info();
  memory.Close();
  return result;
}

}  // namespace

int Maintain(const Arguments& arguments, Console& console) {
  StoreHandle store(
      arguments.store, MNEME_MODE_READ_WRITE, [&](const std::string& text) { console.Message(text); },
      arguments.threads);
  std::vector<std::string> names = arguments.names;
  if (arguments.all) {
    for (const ListedMemory& memory : store.List()) names.push_back(memory.name);
  }
  int exit_code = kExitOk;
  auto list = nlohmann::ordered_json::array();
  for (const std::string& name : names) {
    try {
      const auto [before, after] = MaintainOne(store, name, console);
      if (arguments.json) {
        list.push_back({{"name", name},
                        {"tokens", after.tokens},
                        {"segments_before", before.segments},
                        {"segments", after.segments},
                        {"tail_tokens", after.tail_tokens},
                        {"indexes_before", before.indexes},
                        {"indexes", after.indexes}});
      } else {
        std::printf("%s: %s (%s before), %s (%s before)\n", EscapeName(name).c_str(),
                    Counted(after.segments, "segment", "segments").c_str(), HumanCount(before.segments).c_str(),
                    Counted(after.indexes, "index", "indices").c_str(), HumanCount(before.indexes).c_str());
        std::fflush(stdout);
      }
    } catch (const CallError& error) {
      // One damaged memory is no reason to leave out the others.
      if (error.status() == MNEME_STATUS_CANCELLED) throw;
      console.Message(EscapeName(name) + ": " + mneme_status_name(error.status()) + ": " + error.what());
      exit_code = kExitError;
    }
  }
  store.Close();
  if (arguments.json) PrintJson({{"memories", list}});
  return exit_code;
}

}  // namespace mneme::cli
