// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_FAILURE_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_FAILURE_H_

#include <stdexcept>
#include <string>

#include "hosts/llamacpp/include/mneme_llama.h"

namespace mneme::llama {

// Ends a command of mneme-llama with a message for the person in front of it.
class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& message, int exit_code = 1)
      : std::runtime_error(message), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

// Arguments that do not fit together.
class UsageError : public Failure {
 public:
  explicit UsageError(const std::string& message) : Failure(message, 2) {}
};

// Throws the engine's message if a call of mneme.h failed.
inline void CheckEngine(mneme_status status) {
  if (status != MNEME_OK) throw Failure(std::string(mneme_status_name(status)) + ": " + mneme_last_error());
}

// The same for a call of mneme_llama.h.
inline void CheckAdapter(mneme_status status) {
  if (status != MNEME_OK) throw Failure(std::string(mneme_status_name(status)) + ": " + mneme_llama_last_error());
}

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_FAILURE_H_
