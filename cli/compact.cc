// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/store_handle.h"

namespace mneme::cli {

int Compact(const Arguments& arguments, Console& console) {
  StoreHandle store(arguments.store, MNEME_MODE_READ_WRITE, [&](const std::string& text) { console.Message(text); });
  const int64_t before = store.Stats().disk_bytes;
  store.Compact();
  const int64_t after = store.Stats().disk_bytes;
  store.Close();
  if (arguments.json) {
    PrintJson({{"disk_bytes_before", before}, {"disk_bytes", after}});
  } else {
    std::printf("%s on disk (%s before)\n", HumanBytes(after).c_str(), HumanBytes(before).c_str());
  }
  return kExitOk;
}

}  // namespace mneme::cli
