// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_UTF8_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_UTF8_H_

#include <string>
#include <string_view>

namespace mneme::llama {

// `bytes` without a byte order mark at their begin. Throws Failure where they are not UTF-8, with the offset of the
// first bad byte; `source` names them, for instance a file.
std::string CheckUtf8(std::string bytes, const std::string& source);

// `text` without a character that its end cuts.
std::string_view WithoutCutCharacter(std::string_view text);

// Text that comes in pieces which may end within a character, as a model's tokens do.
class Utf8Stream {
 public:
  // Returns the whole characters that are there after `bytes`; what cannot become a character is replaced by U+FFFD.
  std::string Add(std::string_view bytes);
  // Returns U+FFFD where the last character is not whole, otherwise nothing.
  std::string Finish();

 private:
  std::string pending_;  // the begin of a character
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_UTF8_H_
