// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <mutex>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/progress_bar.h"
#include "cli/store_handle.h"

namespace mneme::cli {

int Verify(const Arguments& arguments, Console& console) {
  std::mutex mutex;
  std::vector<std::string> messages;
  const auto log = [&](const std::string& text) {
    console.Message(text);
    const std::lock_guard<std::mutex> lock(mutex);
    messages.push_back(text);
  };
  const StoreHandle store(arguments.store, MNEME_MODE_READ_ONLY, log);
  mneme_store_verify_report report;
  {
    ProgressBar bar(console, "verify", HumanBytes);
    report = store.Verify(ProgressBar::Report, &bar);
  }
  const bool damaged = report.damaged_memories > 0 || report.damaged_values > 0 || report.damaged_indexes > 0;
  if (arguments.json) {
    const std::lock_guard<std::mutex> lock(mutex);
    PrintJson({{"damaged", damaged},
               {"memories", report.memories},
               {"damaged_memories", report.damaged_memories},
               {"damaged_values", report.damaged_values},
               {"damaged_indexes", report.damaged_indexes},
               {"bytes_read", report.bytes_read},
               {"messages", messages}});
    return damaged ? kExitDamage : kExitOk;
  }
  std::printf("read %s of %s\n", HumanBytes(report.bytes_read).c_str(),
              Counted(report.memories, "memory", "memories").c_str());
  if (!damaged) {
    std::puts("no damage");
    return kExitOk;
  }
  std::printf("damaged: %s, %s, %s\n", Counted(report.damaged_memories, "memory", "memories").c_str(),
              Counted(report.damaged_values, "value", "values").c_str(),
              Counted(report.damaged_indexes, "index (will be rebuilt)", "indices (will be rebuilt)").c_str());
  return kExitDamage;
}

}  // namespace mneme::cli
