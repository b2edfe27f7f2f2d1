#include "capi/hosts/llamacpp/main/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace mneme::llama {

Progress::Progress(std::string what, int64_t total)
    : what_(std::move(what)), total_(total), terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() { Draw(/*last=*/true); }

double Progress::Seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

void Progress::Add(int64_t tokens) {
  done_ += tokens;
  if (terminal_ && Clock::now() - drawn_ > std::chrono::milliseconds(100)) Draw(/*last=*/false);
}

void Progress::Draw(bool last) {
  constexpr int kWidth = 30;
  drawn_ = Clock::now();
  const double share = total_ > 0 ? std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0) : 1.0;
  const int filled = static_cast<int>(share * kWidth);
  const double rate = static_cast<double>(done_) / std::max(Seconds(), 1e-9);
  std::fprintf(stderr, "%s%-24s [%s%s] %lld/%lld tokens, %.0f tokens/s%s", terminal_ ? "\r" : "", what_.c_str(),
               std::string(static_cast<size_t>(filled), '#').c_str(),
               std::string(static_cast<size_t>(kWidth - filled), '.').c_str(), static_cast<long long>(done_),
               static_cast<long long>(total_), rate, last ? "\n" : "");
  std::fflush(stderr);
}

}  // namespace mneme::llama
