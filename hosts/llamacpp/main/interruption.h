// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_INTERRUPTION_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_INTERRUPTION_H_

#include <signal.h>

namespace mneme::llama {

// Turns the first SIGINT or SIGTERM into a request to stop, so that work in memory can be committed. The second one
// ends the process. One at a time in a process.
class Interruption {
 public:
  Interruption();
  ~Interruption();
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

  bool requested() const { return signal_number() != 0; }
  // The signal that came; 0: none.
  int signal_number() const;

 private:
  struct sigaction previous_interrupt_ {};
  struct sigaction previous_terminate_ {};
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_INTERRUPTION_H_
