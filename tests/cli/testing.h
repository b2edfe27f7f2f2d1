// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CLI_TESTING_H_
#define MNEME_TESTS_CLI_TESTING_H_

#include <fcntl.h>
#include <pty.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/temporary_folder.h"
#include "mneme.h"

namespace mneme::cli {

// A folder of its own for one test. A test that is killed leaves it to the next one, which removes it.
class TempFolder {
 public:
  std::string store() const { return path() + "/store"; }
  const std::string& path() const { return folder_.path(); }

 private:
  const TemporaryFolder folder_{::testing::TempDir()};
};

struct CliResult {
  int exit_code = -1;  // -1: ended by a signal
  std::string out;
  std::string err;

  nlohmann::json Json() const { return nlohmann::json::parse(out); }
};

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::vector<char*> MakeArgv(std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  return argv;
}

inline int WaitForExit(pid_t child) {
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status);
}

// Runs the command with nothing to read.
inline CliResult RunCli(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), MNEME_CLI_PATH);
  const TempFolder folder;
  const std::string out = folder.path() + "/out";
  const std::string err = folder.path() + "/err";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out.c_str(), O_WRONLY | O_CREAT, 0600);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, err.c_str(), O_WRONLY | O_CREAT, 0600);
  pid_t child = 0;
  const int error = posix_spawn(&child, MNEME_CLI_PATH, &actions, nullptr, MakeArgv(arguments).data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return {};
  CliResult result;
  result.exit_code = WaitForExit(child);
  result.out = ReadFile(out);
  result.err = ReadFile(err);
  return result;
}

// Why no pseudo-terminal can be opened here, as in a container without /dev/pts; empty if one can.
inline std::string TerminalError() {
  int terminal = -1;
  int child_side = -1;
  if (openpty(&terminal, &child_side, nullptr, nullptr, nullptr) != 0) {
    return std::generic_category().message(errno);
  }
  close(terminal);
  close(child_side);
  return "";
}

// Requires: TerminalError() is empty. Runs the command on a terminal and types `input`. Both outputs come as `out`.
inline CliResult RunCliOnTerminal(std::vector<std::string> arguments, const std::string& input) {
  arguments.insert(arguments.begin(), MNEME_CLI_PATH);
  const std::vector<char*> argv = MakeArgv(arguments);
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
  if (child == 0) {
    execv(MNEME_CLI_PATH, argv.data());
    _exit(127);
  }
  CliResult result;
  if (child < 0 || write(terminal, input.data(), input.size()) != static_cast<ssize_t>(input.size())) return result;
  char buffer[4096];
  // Fails when the child has closed its side.
  for (ssize_t n; (n = read(terminal, buffer, sizeof(buffer))) > 0;) result.out.append(buffer, static_cast<size_t>(n));
  close(terminal);
  result.exit_code = WaitForExit(child);
  return result;
}

inline void ExpectOk(mneme_status status) {
  EXPECT_EQ(status, MNEME_OK) << mneme_status_name(status) << ": " << mneme_last_error();
}

// A store that this process writes to: the command's view of it is that of another process.
class Writer {
 public:
  static constexpr int kLayers[] = {3, 7};
  static constexpr int64_t kDim = 32;
  static constexpr int64_t kRowBytes = 2 * 2 * kDim * 2;  // keys and values of a token: two layers, f16

  explicit Writer(const std::string& path) {
    ExpectOk(mneme_store_open(path.c_str(), nullptr, &store_));
    ExpectOk(mneme_card_create("test-model", "fingerprint-1", &card_));
    for (const int layer : kLayers) {
      mneme_layer_desc desc = MNEME_LAYER_DESC_INIT;
      desc.layer = layer;
      desc.q_heads = 2;
      desc.kv_heads = 1;
      desc.key_dim = kDim;
      desc.value_dim = kDim;
      ExpectOk(mneme_card_add_layer(card_, &desc));
    }
  }
  ~Writer() {
    mneme_card_release(card_);
    ExpectOk(mneme_store_close(store_));
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // A memory with this many random tokens, committed and closed.
  void Create(const std::string& name, int64_t tokens, const char* index = nullptr, int64_t max_tokens = 0,
              int64_t pinned_tokens = 0) {
    mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
    options.segment_tokens = 256;
    options.index = index;
    options.max_tokens = max_tokens;
    options.pinned_tokens = pinned_tokens;
    mneme_memory* memory = nullptr;
    ExpectOk(mneme_memory_create(store_, name.c_str(), card_, &options, &memory));
    std::vector<float> rows(static_cast<size_t>(tokens * kDim));
    for (float& x : rows) x = normal_(random_);
    const int64_t shape[] = {tokens, 1, kDim};
    mneme_tensor tensor = {rows.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, nullptr};
    for (const int layer : kLayers) {
      mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
      args.layer = layer;
      args.keys = &tensor;
      args.values = &tensor;
      if (tokens > 0) ExpectOk(mneme_memory_append(memory, &args));
    }
    ExpectOk(mneme_memory_commit(memory, MNEME_DURABILITY_SYNCED, nullptr));
    ExpectOk(mneme_memory_close(memory));
  }

  // What the library itself says of a memory.
  mneme_memory_info Info(const std::string& name) {
    mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
    mneme_memory* memory = nullptr;
    ExpectOk(mneme_memory_open(store_, name.c_str(), card_, &memory));
    ExpectOk(mneme_memory_get_info(memory, &info));
    ExpectOk(mneme_memory_close(memory));
    return info;
  }

 private:
  mneme_store* store_ = nullptr;
  mneme_card* card_ = nullptr;
  std::mt19937 random_{20240601};
  std::normal_distribution<float> normal_;
};

}  // namespace mneme::cli

#endif  // MNEME_TESTS_CLI_TESTING_H_
