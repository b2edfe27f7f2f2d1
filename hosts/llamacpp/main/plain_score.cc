// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/plain_score.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "hosts/llamacpp/main/failure.h"

namespace mneme::llama {
namespace {

// llama.cpp without an adapter, with room for `room` tokens.
class Plain {
 public:
  Plain(llama_model* model, const ModelSettings& settings, int64_t room)
      : model_(model), window_(settings.window), pinned_(settings.pinned) {
    llama_context_params params = WindowParams(settings);
    params.n_ctx = static_cast<uint32_t>(room);
    params.n_batch = static_cast<uint32_t>(std::min<int64_t>(settings.window, room));
    params.n_ubatch = params.n_batch;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    context_ = NewContext(model, params);
  }

  size_t block() const { return llama_n_batch(context_.get()); }
  void Clear() { llama_memory_clear(llama_get_memory(context_.get()), true); }

  void Decode(std::span<const llama_token> tokens, bool all_logits) {
    std::vector<int8_t> logits(tokens.size(), all_logits ? 1 : 0);
    llama_batch batch =
        llama_batch_get_one(const_cast<llama_token*>(tokens.data()), static_cast<int32_t>(tokens.size()));
    batch.logits = logits.data();
    if (llama_decode(context_.get(), batch) != 0) throw Failure("llama_decode failed");
  }

  // In blocks, without logits.
  void Read(std::span<const llama_token> tokens) {
    for (size_t begin = 0; begin < tokens.size(); begin += block()) {
      Decode(tokens.subspan(begin, std::min(block(), tokens.size() - begin)), /*all_logits=*/false);
    }
  }

  // Drops the oldest tokens but the pinned ones where `more` would make them more than two windows.
  void Slide(int64_t more) {
    const llama_memory_t cache = llama_get_memory(context_.get());
    const int64_t end = llama_memory_seq_pos_max(cache, 0) + 1;
    if (end - first_ + more <= 2 * window_) return;
    const int64_t first = end - window_;
    const auto begin = static_cast<llama_pos>(std::max(first_, pinned_));
    if (first > begin && !llama_memory_seq_rm(cache, 0, begin, static_cast<llama_pos>(first))) {
      throw Failure("--baseline: llama.cpp cannot slide this model's window");
    }
    first_ = first;
  }

  Score ScoreText(std::span<const llama_token> tokens, const std::string& title, bool slide) {
    return ScoreBlocks(
        [&](std::span<const llama_token> part) {
          if (slide) Slide(static_cast<int64_t>(part.size()));
          Decode(part, /*all_logits=*/true);
        },
        [&](int32_t i) {
          const int32_t size = llama_vocab_n_tokens(llama_model_get_vocab(model_));
          return std::span<const float>(llama_get_logits_ith(context_.get(), i), static_cast<size_t>(size));
        },
        block(), tokens, title);
  }

 private:
  llama_model* const model_;
  const int64_t window_;
  const int64_t pinned_;
  int64_t first_ = 0;  // of the window
  ContextPtr context_;
};

// Appends the losses of a later stretch, whose first token is `at` tokens after the first one's.
void Append(Score stretch, size_t at, Score* all) {
  for (TokenLoss& loss : stretch.losses) {
    loss.position += static_cast<int64_t>(at);
    all->nll += loss.nll;
    all->losses.push_back(loss);
  }
}

}  // namespace

Score ScoreNative(llama_model* model, const ModelSettings& settings, int64_t context, std::span<const llama_token> text,
                  size_t begin) {
  Plain plain(model, settings, context);
  const llama_vocab* vocabulary = llama_model_get_vocab(model);
  const size_t begin_token = llama_vocab_get_add_bos(vocabulary) ? 1 : 0;
  const size_t stretch = static_cast<size_t>(context) / 4;
  // Beside them there is room for the begin-of-text token and for the token that predicts the stretch's first.
  const size_t most = static_cast<size_t>(context) - stretch - 1 - begin_token;
  const std::string title = "native " + std::to_string(context);
  const auto start = std::chrono::steady_clock::now();
  Score score;
  for (size_t first = begin + 1; first < text.size(); first += stretch) {
    const size_t end = std::min(first + stretch, text.size());
    const size_t before = std::min(most, first - 1);
    plain.Clear();
    if (begin_token == 1 && before + 1 < first) {
      const llama_token token = llama_vocab_bos(vocabulary);
      plain.Decode(std::span(&token, 1), /*all_logits=*/false);
    }
    plain.Read(text.subspan(first - 1 - before, before));
    Append(plain.ScoreText(text.subspan(first - 1, end - first + 1), title, /*slide=*/false), first - 1 - begin,
           &score);
  }
  score.tokens = static_cast<int64_t>(score.losses.size());
  if (score.tokens > 0) score.nll /= static_cast<double>(score.tokens);
  score.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return score;
}

Score ScoreBaseline(llama_model* model, const ModelSettings& settings, std::span<const llama_token> text,
                    size_t begin) {
  Plain plain(model, settings, 2 * settings.window + settings.pinned);
  for (size_t at = 0; at < begin; at += plain.block()) {
    const auto part = text.subspan(at, std::min(plain.block(), begin - at));
    plain.Slide(static_cast<int64_t>(part.size()));
    plain.Decode(part, /*all_logits=*/false);
  }
  return plain.ScoreText(text.subspan(begin), "scoring the baseline", /*slide=*/true);
}

}  // namespace mneme::llama
