// SPDX-License-Identifier: Apache-2.0
// The commands export and import.

#include <cstdio>
#include <memory>
#include <string>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/progress_bar.h"
#include "cli/store_handle.h"

namespace mneme::cli {

int Export(const Arguments& arguments, Console& console) {
  const StoreHandle store(arguments.store, MNEME_MODE_READ_ONLY,
                          [&](const std::string& text) { console.Message(text); });
  const MemoryHandle memory(store, arguments.name);
  {
    ProgressBar bar(console, "export", HumanBytes);
    mneme_memory_export_args args = MNEME_MEMORY_EXPORT_ARGS_INIT;
    args.path = arguments.file.c_str();
    args.overwrite = arguments.overwrite ? 1 : 0;
    args.progress = ProgressBar::Report;
    args.context = &bar;
    Check(mneme_memory_export(memory.get(), &args));
  }
  const mneme_memory_info info = memory.Info();
  if (arguments.json) {
    PrintJson({{"name", arguments.name}, {"file", arguments.file}, {"tokens", info.tokens}, {"bytes", info.bytes}});
  } else {
    std::printf("%s: %s (%s) in %s\n", EscapeName(arguments.name).c_str(),
                Counted(info.tokens, "token", "tokens").c_str(), HumanBytes(info.bytes).c_str(),
                EscapeName(arguments.file).c_str());
  }
  return kExitOk;
}

int Import(const Arguments& arguments, Console& console) {
  StoreHandle store(
      arguments.store, MNEME_MODE_READ_WRITE, [&](const std::string& text) { console.Message(text); }, 1,
      arguments.create);
  mneme_memory* made = nullptr;
  {
    ProgressBar bar(console, "import", HumanBytes);
    mneme_memory_import_args args = MNEME_MEMORY_IMPORT_ARGS_INIT;
    args.path = arguments.file.c_str();
    args.name = arguments.name.empty() ? nullptr : arguments.name.c_str();
    args.progress = ProgressBar::Report;
    args.context = &bar;
    Check(mneme_memory_import(store.get(), &args, &made));
  }
  auto memory = std::make_unique<MemoryHandle>(made);
  const mneme_memory_info info = memory->Info();
  const std::string name = info.name;
  memory->Close();
  store.Close();
  if (arguments.json) {
    PrintJson({{"name", name}, {"tokens", info.tokens}, {"bytes", info.bytes}});
  } else {
    std::printf("%s: %s (%s) imported\n", EscapeName(name).c_str(), Counted(info.tokens, "token", "tokens").c_str(),
                HumanBytes(info.bytes).c_str());
  }
  return kExitOk;
}

}  // namespace mneme::cli
