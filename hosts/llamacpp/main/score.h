// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_SCORE_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_SCORE_H_

#include <cstdint>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "llama.h"

namespace mneme::llama {

// Negative log-likelihood of one token of a text, in nats.
struct TokenLoss {
  int64_t position = 0;  // of the token, counted from the first of those given
  llama_token token = 0;
  double nll = 0.0;
};

// How well a text is predicted.
struct Score {
  int64_t tokens = 0;  // scored
  double nll = 0.0;    // mean, nats a token
  double seconds = 0.0;
  std::vector<TokenLoss> losses;  // [tokens]
};

// Decodes at most a block of tokens with logits of every token.
using DecodeBlock = std::function<void(std::span<const llama_token>)>;
// The logits of the i-th token of that block. [vocabulary]
using BlockLogits = std::function<std::span<const float>(int32_t i)>;

// Goes on with `tokens`, in blocks of `block`, and scores each but the first, which nothing in this call predicts.
Score ScoreBlocks(const DecodeBlock& decode, const BlockLogits& logits, size_t block,
                  std::span<const llama_token> tokens, const std::string& title);

// A tab-separated file of losses, with a line of names: row, position, token, nll. It has its name only once it is
// whole.
class LossFile {
 public:
  // Throws Failure if the file cannot be written.
  explicit LossFile(const std::string& path);
  ~LossFile();
  LossFile(const LossFile&) = delete;
  LossFile& operator=(const LossFile&) = delete;

  // row: the place of the score in the report, from 0. first: the position in the text of the first token given to
  // ScoreBlocks.
  void Add(size_t row, int64_t first, const Score& score);
  // Throws Failure.
  void Finish();

 private:
  const std::string path_;
  const std::string unfinished_;
  std::FILE* file_ = nullptr;
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_SCORE_H_
