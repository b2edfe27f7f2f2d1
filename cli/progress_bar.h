// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CLI_PROGRESS_BAR_H_
#define MNEME_CLI_PROGRESS_BAR_H_

#include <chrono>
#include <cstdint>
#include <string>

#include "cli/console.h"

namespace mneme::cli {

// A bar for one call of the library that reports its progress; gone when it is destroyed. It appears only on a
// terminal, and only once the call has taken a second. An interrupt (Ctrl-C) cancels the call; a second one ends the
// process as ever. One at a time.
class ProgressBar {
 public:
  // human: writes an amount of the work, e.g. HumanBytes.
  ProgressBar(Console& console, std::string label, std::string (*human)(int64_t));
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // A mneme_progress_fn; context is the ProgressBar.
  static int Report(void* context, int64_t done, int64_t total);

 private:
  using Clock = std::chrono::steady_clock;

  void Update(int64_t done, int64_t total);

  Console& console_;
  const std::string label_;
  std::string (*const human_)(int64_t);
  const Clock::time_point start_ = Clock::now();
  Clock::time_point next_draw_ = start_ + std::chrono::seconds(1);
};

// "chat  [####----]  50%  1.0 GiB of 2.0 GiB  ETA 0:12": at most `columns` wide. total 0: not known.
std::string ProgressLine(const std::string& label, int64_t done, int64_t total, double seconds, int columns,
                         std::string (*human)(int64_t));

}  // namespace mneme::cli

#endif  // MNEME_CLI_PROGRESS_BAR_H_
