// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_HOSTS_LLAMACPP_PROGRAM_H_
#define MNEME_TESTS_HOSTS_LLAMACPP_PROGRAM_H_

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "tests/hosts/llamacpp/testing.h"

namespace mneme::llama {

struct ProgramResult {
  int exit_code = -1;
  std::string output;  // both streams, unless `to` says otherwise
};

// Runs mneme-llama with arguments as a shell reads them.
inline ProgramResult RunProgram(const std::string& arguments, const std::string& to = " 2>&1") {
  FILE* pipe = popen(("'" MNEME_TEST_PROGRAM "' " + arguments + to).c_str(), "r");
  ProgramResult result;
  std::array<char, 4096> buffer;
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) result.output += buffer.data();
  const int status = pclose(pipe);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  return result;
}

inline std::string SmolOptions() {
  return " --model '" + SmolPath() + "' --threads 2";
}
inline std::string TextOptions() {
  return " --text '" MNEME_TEST_TEXT "' --bytes 20000";
}

}  // namespace mneme::llama

#endif  // MNEME_TESTS_HOSTS_LLAMACPP_PROGRAM_H_
