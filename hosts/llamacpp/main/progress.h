// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_PROGRESS_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <string>

namespace mneme::llama {

// The line of a bar in at most `columns` columns: "WHAT [####....] 10/20 tokens, 5 tokens/s". A narrow terminal loses
// the end of `what` first, then the bar.
std::string ProgressLine(const std::string& what, int64_t done, int64_t total, double tokens_per_second, int columns);

// A bar on standard error that rewrites its line, with tokens a second; silent where that is no terminal, but for its
// last line.
class Progress {
 public:
  Progress(std::string what, int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Add(int64_t tokens);
  double Seconds() const;

 private:
  void Draw(bool last);

  using Clock = std::chrono::steady_clock;
  const std::string what_;
  const int64_t total_;
  const bool terminal_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_{};
  int64_t done_ = 0;
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_PROGRESS_H_
