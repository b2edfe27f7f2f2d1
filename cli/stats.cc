// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/store_handle.h"

namespace mneme::cli {

int Stats(const Arguments& arguments, Console& console) {
  const StoreHandle store(arguments.store, MNEME_MODE_READ_ONLY,
                          [&](const std::string& text) { console.Message(text); });
  if (arguments.prometheus) {
    std::fputs(store.Metrics().c_str(), stdout);
    return kExitOk;
  }
  const mneme_store_stats stats = store.Stats();
  // What mneme_store_stats counts since the store was opened says nothing about one that was opened just now.
  int64_t tokens = 0;
  int64_t bytes = 0;
  for (const ListedMemory& memory : store.List()) {
    tokens += memory.tokens;
    bytes += memory.bytes;
  }
  if (arguments.json) {
    PrintJson({{"memories", stats.memories}, {"tokens", tokens}, {"bytes", bytes}, {"disk_bytes", stats.disk_bytes}});
    return kExitOk;
  }
  Table table({Table::Align::kLeft, Table::Align::kRight});
  table.Add({"memories", HumanCount(stats.memories)});
  table.Add({"tokens", HumanCount(tokens)});
  table.Add({"rows", HumanBytes(bytes)});
  table.Add({"disk", HumanBytes(stats.disk_bytes)});
  std::fputs(table.ToString().c_str(), stdout);
  return kExitOk;
}

}  // namespace mneme::cli
