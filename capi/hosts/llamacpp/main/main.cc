// mneme-llama: gives llama.cpp models a memory from the command line.
#include <cstdio>
#include <exception>

#include "CLI/CLI.hpp"
#include "capi/hosts/llamacpp/main/commands.h"
#include "llama.h"

int main(int argc, char** argv) {
  CLI::App program("Language models that remember: llama.cpp with mneme's external memory.", "mneme-llama");
  program.require_subcommand(1);
  mneme::llama::AddIngest(program);
  mneme::llama::AddPerplexity(program);
  mneme::llama::AddGenerate(program);
  mneme::llama::AddCheck(program);
  mneme::llama::AddOverhead(program);
  mneme::llama::AddSpeed(program);
  mneme::llama::AddRecord(program);
  llama_backend_init();
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mneme-llama: %s\n", error.what());
    return 1;
  }
  return 0;
}
