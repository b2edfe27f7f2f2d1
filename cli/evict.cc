// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/store_handle.h"

namespace mneme::cli {

int Evict(const Arguments& arguments, Console& console) {
  StoreHandle store(arguments.store, MNEME_MODE_READ_WRITE, [&](const std::string& text) { console.Message(text); });
  mneme_memory_info before;
  mneme_memory_info after;
  {
    MemoryHandle memory(store, arguments.name);
    before = memory.Info();
    memory.Evict(arguments.keep);
    after = memory.Info();
    memory.Close();
  }
  store.Close();
  if (arguments.json) {
    PrintJson({{"name", arguments.name},
               {"evicted", before.tokens - after.tokens},
               {"tokens", after.tokens},
               {"first_kept", after.first_kept},
               {"bytes", after.bytes}});
  } else {
    std::printf("%s: evicted %s; %s (%s) left\n", EscapeName(arguments.name).c_str(),
                Counted(before.tokens - after.tokens, "token", "tokens").c_str(), HumanCount(after.tokens).c_str(),
                HumanBytes(after.bytes).c_str());
  }
  return kExitOk;
}

}  // namespace mneme::cli
