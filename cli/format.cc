// SPDX-License-Identifier: Apache-2.0
#include "cli/format.h"

#include <algorithm>
#include <cstdio>
#include <iterator>

#include "nlohmann/json.hpp"

namespace mneme::cli {
namespace {

struct Range {
  char32_t first;
  char32_t last;
};

// Invisible, or changes how what follows is shown: C1 controls, soft hyphen, zero-width and bidirectional marks, line
// and paragraph separators, interlinear annotations, the byte order mark. All below U+10000, so \uXXXX writes them.
constexpr Range kHidden[] = {{0x80, 0x9f},     {0xad, 0xad},     {0x61c, 0x61c},   {0x180e, 0x180e}, {0x200b, 0x200f},
                             {0x2028, 0x202e}, {0x2060, 0x206f}, {0xfeff, 0xfeff}, {0xfff9, 0xfffb}};

// Two columns wide in a terminal.
constexpr Range kWide[] = {{0x1100, 0x115f},   {0x2e80, 0xa4cf},  {0xac00, 0xd7a3}, {0xf900, 0xfaff},
                           {0xfe30, 0xfe6f},   {0xff00, 0xff60},  {0xffe0, 0xffe6}, {0x1f300, 0x1f64f},
                           {0x1f900, 0x1f9ff}, {0x20000, 0x3fffd}};

constexpr Range kCombining[] = {{0x300, 0x36f}, {0x1ab0, 0x1aff}, {0x20d0, 0x20ff}, {0xfe00, 0xfe0f}, {0xfe20, 0xfe2f}};

template <size_t n>
bool In(const Range (&ranges)[n], char32_t c) {
  return std::any_of(std::begin(ranges), std::end(ranges), [c](Range r) { return r.first <= c && c <= r.last; });
}

struct Decoded {
  char32_t value = 0;
  size_t bytes = 0;  // 0: no UTF-8
};

// The code point that `text`, which is not empty, begins with.
Decoded DecodeUtf8(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) return {byte(0), 1};
  const size_t bytes = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
  if (byte(0) < 0xc2 || byte(0) > 0xf4 || text.size() < bytes) return {};
  char32_t value = byte(0) & (0xffu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    value = value << 6 | (byte(i) & 0x3fu);
  }
  constexpr char32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < kLeast[bytes] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return {};
  return {value, bytes};
}

void AppendHex(std::string& out, const char* format, unsigned value) {
  char buffer[16];
  std::snprintf(buffer, sizeof(buffer), format, value);
  out += buffer;
}

std::string Escape(std::string_view text, bool as_name) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const Decoded c = DecodeUtf8(text.substr(i));
    const size_t bytes = std::max<size_t>(c.bytes, 1);
    const bool at_end = i == 0 || i + bytes == text.size();
    if (c.bytes == 0) {
      AppendHex(out, "\\x%02x", static_cast<unsigned char>(text[i]));
    } else if (c.value == '\n') {
      out += "\\n";
    } else if (c.value == '\r') {
      out += "\\r";
    } else if (c.value == '\t') {
      out += "\\t";
    } else if (as_name && c.value == '\\') {
      out += "\\\\";
    } else if (c.value < 0x20 || c.value == 0x7f || (as_name && at_end && c.value == ' ')) {
      AppendHex(out, "\\x%02x", static_cast<unsigned>(c.value));
    } else if (In(kHidden, c.value)) {
      AppendHex(out, "\\u%04x", static_cast<unsigned>(c.value));
    } else {
      out += text.substr(i, bytes);
    }
    i += bytes;
  }
  return out;
}

}  // namespace

std::string EscapeName(std::string_view name) {
  return Escape(name, true);
}

std::string EscapeMessage(std::string_view message) {
  return Escape(message, false);
}

std::string HumanBytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  // 1023.95 would be shown as 1024.0.
  while (value >= (unit == 0 ? 1024 : 1023.95) && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return buffer;
}

std::string HumanCount(int64_t count) {
  std::string digits = std::to_string(count);
  const int64_t first = count < 0 ? 1 : 0;
  for (int64_t place = static_cast<int64_t>(digits.size()) - 3; place > first; place -= 3) {
    digits.insert(static_cast<size_t>(place), 1, ',');
  }
  return digits;
}

std::string Counted(int64_t count, std::string_view one, std::string_view many) {
  return HumanCount(count).append(" ").append(count == 1 ? one : many);
}

std::string HumanSeconds(int64_t seconds) {
  char buffer[32];
  if (seconds < 3600) {
    std::snprintf(buffer, sizeof(buffer), "%d:%02d", static_cast<int>(seconds / 60), static_cast<int>(seconds % 60));
  } else {
    std::snprintf(buffer, sizeof(buffer), "%lld:%02d:%02d", static_cast<long long>(seconds / 3600),
                  static_cast<int>(seconds / 60 % 60), static_cast<int>(seconds % 60));
  }
  return buffer;
}

size_t DisplayWidth(std::string_view text) {
  size_t width = 0;
  for (size_t i = 0; i < text.size();) {
    const Decoded c = DecodeUtf8(text.substr(i));
    width += In(kCombining, c.value) ? 0 : In(kWide, c.value) ? 2 : 1;
    i += std::max<size_t>(c.bytes, 1);
  }
  return width;
}

std::string Table::ToString() const {
  std::vector<size_t> widths(columns_.size(), 0);
  for (const auto& row : rows_) {
    for (size_t i = 0; i < columns_.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  }
  std::string out;
  for (const auto& row : rows_) {
    for (size_t i = 0; i < columns_.size(); ++i) {
      const std::string padding(widths[i] - DisplayWidth(row[i]), ' ');
      if (i > 0) out += "  ";
      if (columns_[i] == Align::kRight) out += padding;
      out += row[i];
      // No blanks at the end of a line.
      if (columns_[i] == Align::kLeft && i + 1 < columns_.size()) out += padding;
    }
    out += '\n';
  }
  return out;
}

void PrintJson(const nlohmann::ordered_json& json) {
  const std::string text = json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  std::puts(text.c_str());
}

}  // namespace mneme::cli
