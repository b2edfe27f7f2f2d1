// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/block_reader.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "hosts/llamacpp/main/progress.h"
#include "hosts/llamacpp/main/window.h"

namespace mneme::llama {
namespace {

mneme_llama_stats StatsOf(const Session& session) {
  mneme_llama_stats stats = MNEME_LLAMA_STATS_INIT;
  CheckAdapter(mneme_llama_get_stats(session.adapter(), &stats));
  return stats;
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

IngestTimes Ingest(Session& session, const Memory& memory, std::span<const llama_token> tokens,
                   const std::string& title, mneme_durability durability,
                   const std::function<void(int64_t)>& on_commit) {
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  ResumeWindow(session, memory);
  const mneme_llama_stats before = StatsOf(session);
  const auto start = std::chrono::steady_clock::now();
  double commit = 0.0;
  Progress progress(title, static_cast<int64_t>(tokens.size()));
  for (size_t begin = 0; begin < tokens.size();) {
    const size_t count = std::min(static_cast<size_t>(session.window()), tokens.size() - begin);
    session.Decode(tokens.subspan(begin, count), /*all_logits=*/false);
    const auto committing = std::chrono::steady_clock::now();
    int64_t durable = 0;
    CheckEngine(mneme_memory_commit(memory.get(), durability, &durable));
    commit += SecondsSince(committing);
    if (on_commit) on_commit(durable);
    progress.Add(static_cast<int64_t>(count));
    begin += count;
  }
  const mneme_llama_stats after = StatsOf(session);
  IngestTimes times;
  times.total = SecondsSince(start);
  times.append = commit + static_cast<double>(after.append_us - before.append_us) * 1e-6;
  times.adapter = static_cast<double>(after.capture_us - before.capture_us + after.attend_us - before.attend_us) * 1e-6;
  times.model = static_cast<double>(after.decode_us - before.decode_us) * 1e-6 -
                static_cast<double>(after.append_us - before.append_us) * 1e-6 - times.adapter;
  return times;
}

Score ScoreText(Session& session, std::span<const llama_token> tokens, const std::string& title) {
  return ScoreBlocks([&](std::span<const llama_token> block) { session.Decode(block, /*all_logits=*/true); },
                     [&](int32_t i) { return session.Logits(i); }, static_cast<size_t>(session.window()), tokens,
                     title);
}

}  // namespace mneme::llama
