// SPDX-License-Identifier: Apache-2.0
// What libmneme shows to the linker and to the compiler is the header's functions and nothing else.

#include <array>
#include <cstdio>
#include <fstream>
#include <memory>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string Output(const std::string& command) {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string text;
  std::array<char, 4096> buffer;
  while (pipe != nullptr && fgets(buffer.data(), buffer.size(), pipe.get()) != nullptr) text += buffer.data();
  return text;
}

std::set<std::string> Matches(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern, std::regex::ECMAScript | std::regex::multiline);
  std::set<std::string> found;
  for (std::sregex_iterator it(text.begin(), text.end(), regex), end; it != end; ++it) found.insert((*it)[1]);
  return found;
}

TEST(SymbolsTest, TheLibraryExportsTheStoredList) {
  const std::string exported = Output(MNEME_TEST_NM " -D --defined-only " MNEME_TEST_LIBRARY);
  // "MNEME_0 A" is the version node itself.
  std::set<std::string> symbols = Matches(exported, "^[0-9a-f]+ [^A] ([^@\\s]+)");
  for (const char* sanitizer : {"__asan", "__ubsan", "__tsan"}) {
    std::erase_if(symbols, [&](const std::string& symbol) { return symbol.starts_with(sanitizer); });
  }
  const std::set<std::string> stored = Matches(ReadFile(MNEME_TEST_SYMBOLS), "^(\\S+)$");
  EXPECT_EQ(symbols, stored) << "the ABI has changed: mend the library, or symbols.txt and the ABI version";
}

TEST(SymbolsTest, TheHeaderDeclaresTheStoredList) {
  const std::string header = ReadFile(MNEME_TEST_HEADER);
  EXPECT_EQ(Matches(header, "^MNEME_API [^(]*\\b(mneme_\\w+)\\("), Matches(ReadFile(MNEME_TEST_SYMBOLS), "^(\\S+)$"));
}

TEST(SymbolsTest, TheHeaderIncludesOnlyItsTwoStandardHeaders) {
  EXPECT_THAT(Matches(ReadFile(MNEME_TEST_HEADER), "^\\s*#\\s*include\\s+(\\S+)"),
              ElementsAre("<stddef.h>", "<stdint.h>"));
}

TEST(SymbolsTest, TheSonameCarriesTheAbiNumber) {
  EXPECT_THAT(Output(MNEME_TEST_READELF " -d " MNEME_TEST_LIBRARY), HasSubstr("soname: [libmneme.so.0]"));
}

TEST(SymbolsTest, TheLibraryIsNeverUnloaded) {
  // fork() and exit() call handlers that lie in it.
  EXPECT_THAT(Output(MNEME_TEST_READELF " -d " MNEME_TEST_LIBRARY), HasSubstr("NODELETE"));
}

}  // namespace
