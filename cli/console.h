// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CLI_CONSOLE_H_
#define MNEME_CLI_CONSOLE_H_

#include <mutex>
#include <set>
#include <string>
#include <string_view>

namespace mneme::cli {

// stderr: lines of messages and, on a terminal, at most one status line below them. Thread-safe.
class Console {
 public:
  Console();

  bool is_terminal() const { return is_terminal_; }
  // Columns of the terminal; 80 where it does not say.
  int Width() const;

  // "mneme: TEXT", escaped. The same text is told once only.
  void Message(std::string_view text);

  // Replaces the status line; "" removes it. Nothing happens where stderr is no terminal.
  void SetStatusLine(const std::string& line);

 private:
  void Draw(const std::string& line);  // mutex_ is held

  const bool is_terminal_;
  std::mutex mutex_;
  std::string status_line_;
  std::set<std::string, std::less<>> told_;
};

}  // namespace mneme::cli

#endif  // MNEME_CLI_CONSOLE_H_
