// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <vector>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/store_handle.h"

namespace mneme::cli {

int List(const Arguments& arguments, Console& console) {
  const StoreHandle store(arguments.store, MNEME_MODE_READ_ONLY,
                          [&](const std::string& text) { console.Message(text); });
  const std::vector<ListedMemory> memories = store.List();
  if (arguments.json) {
    auto list = nlohmann::ordered_json::array();
    for (const ListedMemory& memory : memories) {
      list.push_back({{"name", memory.name}, {"tokens", memory.tokens}, {"bytes", memory.bytes}});
    }
    PrintJson({{"memories", list}});
    return kExitOk;
  }
  if (memories.empty()) {
    std::puts("no memories");
    return kExitOk;
  }
  Table table({Table::Align::kLeft, Table::Align::kRight, Table::Align::kRight});
  table.Add({"NAME", "TOKENS", "SIZE"});
  for (const ListedMemory& memory : memories) {
    table.Add({EscapeName(memory.name), HumanCount(memory.tokens), HumanBytes(memory.bytes)});
  }
  std::fputs(table.ToString().c_str(), stdout);
  return kExitOk;
}

}  // namespace mneme::cli
