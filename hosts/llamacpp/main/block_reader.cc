// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/block_reader.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "hosts/llamacpp/main/progress.h"
#include "hosts/llamacpp/main/text.h"

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

void CheckSameText(const Memory& memory, const Session& session, std::span<const llama_token> tokens) {
  const mneme_memory_info info = memory.Info();
  if (info.next_token > static_cast<int64_t>(tokens.size())) {
    throw Failure("the memory holds " + std::to_string(info.next_token) + " tokens, the text has " +
                  std::to_string(tokens.size()));
  }
  const int32_t* layers = nullptr;
  mneme_llama_get_layers(session.adapter(), &layers);
  const auto check = [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    std::vector<int32_t> ids(static_cast<size_t>(end - begin));
    mneme_memory_read_args args = MNEME_MEMORY_READ_ARGS_INIT;
    args.layer = layers[0];
    args.begin = begin;
    args.tokens = end - begin;
    args.token_ids = ids.data();
    CheckEngine(mneme_memory_read(memory.get(), &args));
    const auto differs = std::mismatch(ids.begin(), ids.end(), tokens.begin() + begin).first;
    if (differs != ids.end()) {
      throw Failure("the memory holds another text: token " + std::to_string(begin + (differs - ids.begin())) +
                    " differs");
    }
  };
  check(0, std::min(info.pinned_tokens, info.next_token));
  check(std::max(info.first_kept, info.pinned_tokens), info.next_token);
}

IngestTimes Ingest(Session& session, const Memory& memory, std::span<const llama_token> tokens,
                   const std::string& title, mneme_durability durability,
                   const std::function<void(int64_t)>& on_commit) {
  session.Attach(0, memory.get(), MNEME_LLAMA_MODE_APPEND);
  CheckAdapter(mneme_llama_resume(session.adapter(), 0, session.window()));
  const auto first = static_cast<size_t>(memory.Info().next_token);
  const mneme_llama_stats before = StatsOf(session);
  const auto start = std::chrono::steady_clock::now();
  double commit = 0.0;
  Progress progress(title, static_cast<int64_t>(tokens.size() - std::min(first, tokens.size())));
  for (size_t begin = first; begin < tokens.size();) {
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
  const auto start = std::chrono::steady_clock::now();
  Progress progress(title, static_cast<int64_t>(tokens.size()));
  Score score;
  for (size_t begin = 0; begin < tokens.size();) {
    const size_t count = std::min(static_cast<size_t>(session.window()), tokens.size() - begin);
    session.Decode(tokens.subspan(begin, count), /*all_logits=*/true);
    for (size_t i = 0; i < count && begin + i + 1 < tokens.size(); ++i) {
      score.nll += NegativeLogLikelihood(session.Logits(static_cast<int32_t>(i)), tokens[begin + i + 1]);
      ++score.tokens;
    }
    progress.Add(static_cast<int64_t>(count));
    begin += count;
  }
  if (score.tokens > 0) score.nll /= static_cast<double>(score.tokens);
  score.seconds = SecondsSince(start);
  return score;
}

}  // namespace mneme::llama
