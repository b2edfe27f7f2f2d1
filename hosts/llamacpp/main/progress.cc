// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

namespace mneme::llama {
namespace {

constexpr int kLabelColumns = 24;
constexpr int kBarColumns = 20;
constexpr int kLeastBar = 5;

int TerminalColumns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

// Cut or filled up to `columns`. Control characters become '?'; a character beyond ASCII may be two columns wide and
// counts so.
std::string Fit(const std::string& text, int columns) {
  std::string fitted;
  int width = 0;
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    size_t bytes = 1;
    while (byte >= 0x80 && i + bytes < text.size() && (static_cast<unsigned char>(text[i + bytes]) & 0xc0) == 0x80) {
      ++bytes;
    }
    width += byte >= 0x80 ? 2 : 1;
    if (width > columns) {
      width -= byte >= 0x80 ? 2 : 1;
      break;
    }
    fitted += byte < 0x20 || byte == 0x7f ? "?" : text.substr(i, bytes);
    i += bytes;
  }
  return fitted + std::string(static_cast<size_t>(columns - width), ' ');
}

}  // namespace

Progress::Progress(std::string what, int64_t total)
    : what_(std::move(what)), total_(total), terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  Draw(/*last=*/true);
}

double Progress::Seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

void Progress::Add(int64_t tokens) {
  done_ += tokens;
  if (terminal_ && Clock::now() - drawn_ > std::chrono::milliseconds(100)) Draw(/*last=*/false);
}

std::string ProgressLine(const std::string& what, int64_t done, int64_t total, double tokens_per_second, int columns) {
  char amount[96];
  std::snprintf(amount, sizeof(amount), "%lld/%lld tokens, %.0f tokens/s", static_cast<long long>(done),
                static_cast<long long>(total), tokens_per_second);
  const int left = columns - static_cast<int>(std::strlen(amount));
  if (left < 0) return "";
  constexpr int kLeastLabel = 8;
  const int bar = std::min(kBarColumns, left - kLeastLabel - 4);  // brackets and two blanks
  if (bar < kLeastBar) return amount;
  const double share = total > 0 ? std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0) : 1.0;
  const auto filled = static_cast<size_t>(share * bar);
  return Fit(what, std::min(kLabelColumns, left - bar - 4)) + " [" + std::string(filled, '#') +
         std::string(static_cast<size_t>(bar) - filled, '.') + "] " + amount;
}

void Progress::Draw(bool last) {
  drawn_ = Clock::now();
  const double rate = static_cast<double>(done_) / std::max(Seconds(), 1e-9);
  // The last column stays free: some terminals wrap when it is written.
  const std::string line = ProgressLine(what_, done_, total_, rate, TerminalColumns() - 1);
  std::fprintf(stderr, "%s%s%s", terminal_ ? "\r\x1b[K" : "", line.c_str(), last ? "\n" : "");
  std::fflush(stderr);
}

}  // namespace mneme::llama
