// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_SRC_STATUS_H_
#define MNEME_HOSTS_LLAMACPP_SRC_STATUS_H_

#include <string>
#include <utility>

#include "mneme.h"

namespace mneme::llama {

// How a step inside the adapter ended. The boundary (api.cc) turns it into a code and this thread's last error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(mneme_status code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == MNEME_OK; }
  mneme_status code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  mneme_status code_ = MNEME_OK;
  std::string message_;
};

inline Status Invalid(std::string message) {
  return {MNEME_STATUS_INVALID_ARGUMENT, std::move(message)};
}
inline Status Refused(std::string message) {
  return {MNEME_STATUS_FAILED_PRECONDITION, std::move(message)};
}
inline Status NotServed(std::string message) {
  return {MNEME_STATUS_UNIMPLEMENTED, std::move(message)};
}

// What a call of the engine returned, with the engine's own message.
inline Status FromEngine(mneme_status code) {
  return code == MNEME_OK ? Status() : Status(code, mneme_last_error());
}

}  // namespace mneme::llama

#define MNEME_LLAMA_RETURN_IF_ERROR(expression)                \
  do {                                                         \
    ::mneme::llama::Status mneme_llama_status_ = (expression); \
    if (!mneme_llama_status_.ok()) return mneme_llama_status_; \
  } while (false)

#endif  // MNEME_HOSTS_LLAMACPP_SRC_STATUS_H_
