// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/utf8.h"

#include <cstdio>
#include <iterator>

#include "hosts/llamacpp/main/failure.h"
#include "utf8/checked.h"

namespace mneme::llama {
namespace {

constexpr size_t kLongestCharacter = 4;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

bool IsContinuation(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) == 0x80;
}

size_t LengthByFirstByte(char first) {
  const auto byte = static_cast<unsigned char>(first);
  if (byte >= 0xF0 && byte <= 0xF4) return 4;
  if (byte >= 0xE0 && byte < 0xF0) return 3;
  if (byte >= 0xC2 && byte < 0xE0) return 2;
  return 1;
}

}  // namespace

std::string CheckUtf8(std::string bytes, const std::string& source) {
  if (bytes.starts_with("\xFF\xFE") || bytes.starts_with("\xFE\xFF")) {
    throw Failure(source + ": is UTF-16 (it begins with its byte order mark), expected UTF-8");
  }
  const auto bad = utf8::find_invalid(bytes.begin(), bytes.end());
  if (bad != bytes.end()) {
    char byte[8];
    std::snprintf(byte, sizeof(byte), "0x%02X", static_cast<unsigned char>(*bad));
    throw Failure(source + ": is not UTF-8: byte " + byte + " at offset " + std::to_string(bad - bytes.begin()));
  }
  if (bytes.starts_with("\xEF\xBB\xBF")) bytes.erase(0, 3);
  return bytes;
}

std::string_view WithoutCutCharacter(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0 && text.size() - begin < kLongestCharacter) {
    --begin;
    if (IsContinuation(text[begin])) continue;
    return LengthByFirstByte(text[begin]) > text.size() - begin ? text.substr(0, begin) : text;
  }
  return text;
}

std::string Utf8Stream::Add(std::string_view bytes) {
  pending_ += bytes;
  const std::string_view whole = WithoutCutCharacter(pending_);
  std::string text;
  utf8::replace_invalid(whole.begin(), whole.end(), std::back_inserter(text));
  pending_.erase(0, whole.size());
  return text;
}

std::string Utf8Stream::Finish() {
  const bool cut = !pending_.empty();
  pending_.clear();
  return std::string(cut ? kReplacement : std::string_view());
}

}  // namespace mneme::llama
