// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CLI_FORMAT_H_
#define MNEME_CLI_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json_fwd.hpp"

namespace mneme::cli {

// A name such that nothing in it moves the cursor, changes the direction of writing or hides: control and format
// characters, bytes that are no UTF-8, the backslash and a space at either end become escapes of the shell's $'…'.
std::string EscapeName(std::string_view name);

// The same for a message, where backslashes and spaces stand for themselves.
std::string EscapeMessage(std::string_view message);

// "512 B", "1.5 KiB", "64.0 MiB"; up to EiB.
std::string HumanBytes(int64_t bytes);

// "1,234,567".
std::string HumanCount(int64_t count);

// "1 memory", "1,234 memories".
std::string Counted(int64_t count, std::string_view one, std::string_view many);

// "0:07", "12:34", "1:02:03".
std::string HumanSeconds(int64_t seconds);

// Columns a terminal shows `text` in.
size_t DisplayWidth(std::string_view text);

// Lines of cells in aligned columns, two spaces apart.
class Table {
 public:
  enum class Align { kLeft, kRight };

  explicit Table(std::vector<Align> columns) : columns_(std::move(columns)) {}

  // As many cells as there are columns.
  void Add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string ToString() const;

 private:
  std::vector<Align> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// To stdout, indented. Bytes that are no UTF-8 become U+FFFD.
void PrintJson(const nlohmann::ordered_json& json);

}  // namespace mneme::cli

#endif  // MNEME_CLI_FORMAT_H_
