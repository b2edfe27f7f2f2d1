// SPDX-License-Identifier: Apache-2.0
// mneme-llama: gives llama.cpp models a memory from the command line.
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>

#include "CLI/CLI.hpp"
#include "hosts/llamacpp/main/commands.h"
#include "hosts/llamacpp/main/failure.h"
#include "llama.h"
#include "mneme.h"

namespace mneme::llama {
namespace {

int RunProgram(int argc, char** argv) {
  CLI::App program("Language models that remember: llama.cpp with mneme's external memory.", "mneme-llama");
  program.require_subcommand(1);
  program.set_version_flag(
      "--version", [] { return std::string(mneme_version()); }, "The library's version");
  program.footer("Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted");
  AddIngest(program);
  AddPerplexity(program);
  AddGenerate(program);
  AddCheck(program);
  AddOverhead(program);
  AddSpeed(program);
  AddRecord(program);
  llama_backend_init();
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // --help and --version come this way, too.
    return program.exit(error) == 0 ? 0 : 2;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "mneme-llama: %s\n", failure.what());
    return failure.exit_code();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mneme-llama: %s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace mneme::llama

int main(int argc, char** argv) {
  const int exit_code = mneme::llama::RunProgram(argc, argv);
  std::cout.flush();
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout) {
    std::fprintf(stderr, "mneme-llama: cannot write to the standard output\n");
    return exit_code == 0 ? 1 : exit_code;
  }
  return exit_code;
}
