// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"

#include "cli/commands.h"
#include "cli/store_handle.h"
#include "mneme.h"

namespace mneme::cli {
namespace {

constexpr char kFooter[] =
    "A name that begins with a dash comes after a lone --, as in: mneme info STORE -- -name\n"
    "Exit codes: 0 done, 1 error, 2 wrong usage, 3 verify found damage";

// CLI11 takes "[a,b]" for a list of two where several values may stand. A mark in front keeps such arguments whole.
constexpr char kMark = '\x01';

std::vector<std::string> MarkedReversed(int argc, char** argv) {
  std::vector<std::string> arguments;  // from the last to the first, as CLI11 wants them
  for (int i = argc - 1; i > 0; --i) {
    std::string argument = argv[i];
    if (argument.starts_with('[') || argument.starts_with(kMark)) argument.insert(argument.begin(), kMark);
    arguments.push_back(std::move(argument));
  }
  return arguments;
}

void Unmark(std::string& argument) {
  if (argument.starts_with(kMark)) argument.erase(0, 1);
}

using Command = int (*)(const Arguments&, Console&);

class CommandLine {
 public:
  CommandLine() {
    app_.require_subcommand(1);
    app_.set_version_flag(
        "--version", [] { return std::string(mneme_version()); }, "The library's version");
    app_.footer(kFooter);
    Add("list", "The memories of a store and their sizes", List);
    AddName(Add("info", "What one memory is and holds", Info));
    Add("verify", "Read everything against its checksums", Verify);

    CLI::App* exported = AddName(Add("export", "Write one memory into a file in the format safetensors", Export));
    AddFile(exported, "The file to write; its name ends in .safetensors");
    exported->add_flag("--overwrite", arguments_.overwrite, "Replace a file that is there");

    CLI::App* imported = Add("import", "Make a memory from an exported one", Import);
    AddFile(imported, "The exported file; of several, the name without their numbers");
    imported->add_option("NAME", arguments_.name, "The new memory; by default the exported one's name");
    imported->add_flag("--create", arguments_.create, "Create the store if there is none");

    Add("compact", "Write the store's files anew, so that what was dropped cannot be read in them", Compact);

    CLI::App* maintain = Add("maintain", "Seal, merge and index what is due", Maintain);
    CLI::Option* names = maintain->add_option("NAME", arguments_.names, "The memories");
    CLI::Option* all = maintain->add_flag("--all", arguments_.all, "Every memory of the store");
    names->excludes(all);
    maintain->add_option("--threads", arguments_.threads, "Threads to work on; as many as there are cores by default")
        ->check(CLI::Range(1, 1024));
    maintain->callback([this] {
      if (arguments_.names.empty() && !arguments_.all) throw CLI::RequiredError("NAME or --all");
    });

    CLI::App* evict = Add("evict", "Evict the oldest tokens of one memory", Evict);
    AddName(evict);
    evict->add_option("--keep", arguments_.keep, "At most this many tokens are left, pinned ones included")
        ->required()
        ->check(CLI::NonNegativeNumber);

    CLI::App* drop = Add("drop", "Remove memories for good, all or none", Drop);
    drop->add_option("NAME", arguments_.names, "The memories")->required();
    drop->add_flag("--yes", arguments_.yes, "Do not ask");

    AddBackupCommands();

    CLI::App* stats = Add("stats", "What the store holds and takes on disk", Stats);
    stats->add_flag("--prometheus", arguments_.prometheus, "The text format of Prometheus")
        ->excludes(stats->get_option("--json"));
    arguments_.threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 1024u));
  }

  // Returns an exit code.
  int Run(int argc, char** argv) {
    Console console;
    int exit_code = kExitOk;
    try {
      app_.parse(MarkedReversed(argc, argv));
      Unmark(arguments_.store);
      Unmark(arguments_.name);
      Unmark(arguments_.folder);
      Unmark(arguments_.file);
      for (std::string& name : arguments_.names) Unmark(name);
      exit_code = RunCommand(commands_.at(app_.get_subcommands().front()), console);
    } catch (const CLI::ParseError& error) {
      // --help and --version come this way, too.
      exit_code = app_.exit(error) == 0 ? kExitOk : kExitUsage;
    }
    std::cout.flush();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) || !std::cout) {
      console.Message("cannot write to the standard output");
      return kExitError;
    }
    return exit_code;
  }

 private:
  CLI::App* Add(const std::string& name, const std::string& description, Command command) {
    CLI::App* app = app_.add_subcommand(name, description);
    AddStore(app, "The store's folder");
    AddJson(app, command);
    return app;
  }

  void AddBackupCommands() {
    CLI::App* backup =
        Add("backup", "Back the store up; what an earlier backup in the folder has is not copied", Backup);
    AddFolder(backup);
    backup->add_option("--keep", arguments_.keep, "Delete all but this many of the newest backups")
        ->check(CLI::Range(int64_t{1}, int64_t{INT32_MAX}));

    CLI::App* backups = app_.add_subcommand("backups", "The backups of a folder");
    AddFolder(backups);
    AddJson(backups, Backups);

    CLI::App* restore = app_.add_subcommand("restore", "Make a backup a store again");
    AddFolder(restore);
    AddStore(restore, "The new store's folder, missing or empty");
    restore->add_option("--backup", arguments_.backup, "Its number; the newest by default")
        ->check(CLI::Range(int64_t{1}, int64_t{INT32_MAX}));
    AddJson(restore, Restore);
  }

  void AddStore(CLI::App* app, const std::string& description) {
    app->add_option("STORE", arguments_.store, description)->required();
  }

  void AddFolder(CLI::App* app) {
    app->add_option("FOLDER", arguments_.folder, "The folder of the backups")->required();
  }

  void AddJson(CLI::App* app, Command command) {
    app->add_flag("--json", arguments_.json, "Exact numbers, for programs");
    commands_[app] = command;
  }

  CLI::App* AddName(CLI::App* app) {
    app->add_option("NAME", arguments_.name, "The memory")->required();
    return app;
  }

  void AddFile(CLI::App* app, const std::string& description) {
    app->add_option("FILE", arguments_.file, description)->required();
  }

  int RunCommand(Command command, Console& console) {
    try {
      return command(arguments_, console);
    } catch (const CallError& error) {
      console.Message(std::string(mneme_status_name(error.status())) + ": " + error.what());
      // A store too damaged to be opened or read to the end is damage found.
      return command == Verify && error.status() == MNEME_STATUS_DATA_LOSS ? kExitDamage : kExitError;
    } catch (const std::exception& error) {
      console.Message(error.what());
      return kExitError;
    }
  }

  CLI::App app_{"External key-value memory for transformers", "mneme"};
  Arguments arguments_;
  std::map<const CLI::App*, Command> commands_;
};

}  // namespace
}  // namespace mneme::cli

int main(int argc, char** argv) {
  return mneme::cli::CommandLine().Run(argc, argv);
}
