// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/interruption.h"

#include <csignal>

namespace mneme::llama {
namespace {

volatile std::sig_atomic_t caught = 0;

void Catch(int number) {
  caught = number;
}

}  // namespace

Interruption::Interruption() {
  caught = 0;
  struct sigaction action {};
  action.sa_handler = Catch;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  sigaction(SIGINT, &action, &previous_interrupt_);
  sigaction(SIGTERM, &action, &previous_terminate_);
}

Interruption::~Interruption() {
  sigaction(SIGINT, &previous_interrupt_, nullptr);
  sigaction(SIGTERM, &previous_terminate_, nullptr);
}

int Interruption::signal_number() const {
  return caught;
}

}  // namespace mneme::llama
