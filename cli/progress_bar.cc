// SPDX-License-Identifier: Apache-2.0
#include "cli/progress_bar.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <utility>

#include "cli/format.h"

namespace mneme::cli {
namespace {

constexpr auto kRedrawEvery = std::chrono::milliseconds(100);
constexpr int kBarColumns = 24;
constexpr double kMaxEtaSeconds = 99 * 3600.0;

volatile std::sig_atomic_t interrupted = 0;
struct sigaction previous_action;

void Interrupt(int) {
  interrupted = 1;
}

}  // namespace

ProgressBar::ProgressBar(Console& console, std::string label, std::string (*human)(int64_t))
    : console_(console), label_(std::move(label)), human_(human) {
  interrupted = 0;
  struct sigaction action {};
  action.sa_handler = Interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  sigaction(SIGINT, &action, &previous_action);
}

ProgressBar::~ProgressBar() {
  sigaction(SIGINT, &previous_action, nullptr);
  console_.SetStatusLine("");
}

int ProgressBar::Report(void* context, int64_t done, int64_t total) {
  static_cast<ProgressBar*>(context)->Update(done, total);
  return interrupted != 0;
}

void ProgressBar::Update(int64_t done, int64_t total) {
  if (!console_.is_terminal()) return;
  const Clock::time_point now = Clock::now();
  if (now < next_draw_) return;
  next_draw_ = now + kRedrawEvery;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  // The last column stays free: some terminals wrap when it is written.
  console_.SetStatusLine(ProgressLine(label_, done, total, seconds, console_.Width() - 1, human_));
}

std::string ProgressLine(const std::string& label, int64_t done, int64_t total, double seconds, int columns,
                         std::string (*human)(int64_t)) {
  std::string amount = "  " + human(done);
  std::string bar;
  if (total > 0) {
    const double fraction = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
    const auto filled = static_cast<size_t>(std::floor(fraction * kBarColumns));
    char percent[16];
    std::snprintf(percent, sizeof(percent), "] %3.0f%%", std::floor(fraction * 100));
    bar = "  [" + std::string(filled, '#') + std::string(kBarColumns - filled, '-') + percent;
    amount += " of " + human(total);
    const double eta = fraction > 0 ? seconds * (1 - fraction) / fraction : kMaxEtaSeconds;
    if (eta < kMaxEtaSeconds) amount += "  ETA " + HumanSeconds(std::llround(eta));
  }
  // A narrow terminal loses the label first, then the bar.
  for (const std::string& line : {label + bar + amount, bar + amount, amount}) {
    if (DisplayWidth(line) <= static_cast<size_t>(std::max(columns, 0))) return line;
  }
  return "";
}

}  // namespace mneme::cli
