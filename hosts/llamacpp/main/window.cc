// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/window.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>

#include "hosts/llamacpp/main/progress.h"
#include "hosts/llamacpp/src/window_state.h"

namespace mneme::llama {
namespace {

struct Bar {
  std::optional<Progress> progress;
  int64_t done = 0;
};

int ShowProgress(void* context, int64_t done, int64_t total) {
  Bar& bar = *static_cast<Bar*>(context);
  if (!bar.progress) bar.progress.emplace("window", total);
  bar.progress->Add(done - bar.done);
  bar.done = done;
  return 0;
}

}  // namespace

void ResumeWindow(Session& session, const Memory& memory) {
  if (memory.Info().next_token == 0) return;
  const auto start = std::chrono::steady_clock::now();
  if (mneme_llama_restore_window(session.adapter(), 0) == MNEME_OK) {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::fprintf(stderr, "window restored in %.2f s\n", seconds.count());
    return;
  }
  std::fprintf(stderr, "the window is decoded again: %s\n", mneme_llama_last_error());
  Bar bar;
  CheckAdapter(mneme_llama_resume(session.adapter(), 0, session.window(), &ShowProgress, &bar));
}

void SaveWindow(Session& session, const Memory& memory, mneme_durability durability) {
  mneme_status status = mneme_llama_save_window(session.adapter(), 0);
  if (status != MNEME_OK) {
    std::fprintf(stderr, "the window is not kept: %s\n", mneme_llama_last_error());
    return;
  }
  status = mneme_memory_commit(memory.get(), durability, nullptr);
  if (status == MNEME_OK) return;
  std::fprintf(stderr, "the window is not kept: %s\n", mneme_last_error());
  mneme_memory_set_attachment(memory.get(), kWindowAttachment, nullptr, 0, 0);
}

}  // namespace mneme::llama
