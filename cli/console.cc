// SPDX-License-Identifier: Apache-2.0
#include "cli/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

#include "cli/format.h"

namespace mneme::cli {

Console::Console() : is_terminal_(isatty(STDERR_FILENO) == 1) {}

int Console::Width() const {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

void Console::Message(std::string_view text) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto [told, is_new] = told_.emplace(EscapeMessage(text));
  if (!is_new) return;
  const std::string status_line = status_line_;
  Draw("");
  std::fprintf(stderr, "mneme: %s\n", told->c_str());
  Draw(status_line);
}

void Console::SetStatusLine(const std::string& line) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Draw(line);
}

void Console::Draw(const std::string& line) {
  if (!is_terminal_ || line == status_line_) return;
  status_line_ = line;
  // To the line's start, and erase it.
  std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
  std::fflush(stderr);
}

}  // namespace mneme::cli
