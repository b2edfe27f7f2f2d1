// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/progress_bar.h"
#include "cli/store_handle.h"

namespace mneme::cli {
namespace {

// "2026-12-01 15:04:05", in the machine's time zone.
std::string HumanTime(int64_t unix_seconds) {
  const std::time_t time = static_cast<std::time_t>(unix_seconds);
  std::tm parts{};
  char text[32];
  if (localtime_r(&time, &parts) == nullptr || std::strftime(text, sizeof(text), "%F %T", &parts) == 0) return "?";
  return text;
}

std::vector<mneme_backup_info> ListBackups(const std::string& folder) {
  std::vector<mneme_backup_info> backups;
  const auto visit = [](void* context, const mneme_backup_info* info) {
    static_cast<std::vector<mneme_backup_info>*>(context)->push_back(*info);
    return 0;
  };
  Check(mneme_backup_list(folder.c_str(), visit, &backups));
  return backups;
}

}  // namespace

int Backup(const Arguments& arguments, Console& console) {
  StoreHandle store(arguments.store, MNEME_MODE_READ_WRITE, [&](const std::string& text) { console.Message(text); });
  mneme_backup_info info = MNEME_BACKUP_INFO_INIT;
  {
    ProgressBar bar(console, "backup", HumanBytes);
    mneme_store_backup_args args = MNEME_STORE_BACKUP_ARGS_INIT;
    args.folder = arguments.folder.c_str();
    args.keep = arguments.keep;
    args.progress = ProgressBar::Report;
    args.context = &bar;
    Check(mneme_store_backup(store.get(), &args, &info));
  }
  store.Close();
  if (arguments.json) {
    PrintJson({{"backup", info.id},
               {"unix_seconds", info.unix_seconds},
               {"bytes", info.bytes},
               {"files", info.files},
               {"copied_bytes", info.copied_bytes}});
  } else {
    std::printf("backup %s: %s in %s, %s copied\n", HumanCount(info.id).c_str(), HumanBytes(info.bytes).c_str(),
                Counted(info.files, "file", "files").c_str(), HumanBytes(info.copied_bytes).c_str());
  }
  return kExitOk;
}

int Backups(const Arguments& arguments, Console&) {
  const std::vector<mneme_backup_info> backups = ListBackups(arguments.folder);
  if (arguments.json) {
    auto list = nlohmann::ordered_json::array();
    for (const mneme_backup_info& info : backups) {
      list.push_back({{"backup", info.id},
                      {"unix_seconds", info.unix_seconds},
                      {"bytes", info.bytes},
                      {"files", info.files},
                      {"damaged", info.damaged != 0}});
    }
    PrintJson({{"backups", list}});
    return kExitOk;
  }
  Table table({Table::Align::kRight, Table::Align::kLeft, Table::Align::kRight, Table::Align::kRight});
  table.Add({"BACKUP", "MADE", "SIZE", "FILES"});
  for (const mneme_backup_info& info : backups) {
    if (info.damaged != 0) {
      table.Add({HumanCount(info.id), "damaged", "", ""});
    } else {
      table.Add({HumanCount(info.id), HumanTime(info.unix_seconds), HumanBytes(info.bytes), HumanCount(info.files)});
    }
  }
  std::fputs(table.ToString().c_str(), stdout);
  return kExitOk;
}

int Restore(const Arguments& arguments, Console& console) {
  {
    ProgressBar bar(console, "restore", HumanBytes);
    mneme_store_restore_args args = MNEME_STORE_RESTORE_ARGS_INIT;
    args.folder = arguments.folder.c_str();
    args.path = arguments.store.c_str();
    args.backup = arguments.backup;
    args.progress = ProgressBar::Report;
    args.context = &bar;
    Check(mneme_store_restore(&args));
  }
  if (arguments.json) {
    PrintJson({{"store", arguments.store}, {"restored", true}});
  } else {
    std::printf("%s: restored\n", EscapeName(arguments.store).c_str());
  }
  return kExitOk;
}

}  // namespace mneme::cli
