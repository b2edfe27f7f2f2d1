// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/score.h"

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "hosts/llamacpp/main/failure.h"
#include "hosts/llamacpp/main/progress.h"
#include "hosts/llamacpp/main/text.h"

namespace mneme::llama {

Score ScoreBlocks(const DecodeBlock& decode, const BlockLogits& logits, size_t block,
                  std::span<const llama_token> tokens, const std::string& title) {
  Progress progress(title, static_cast<int64_t>(tokens.size()));
  Score score;
  for (size_t begin = 0; begin < tokens.size();) {
    const size_t count = std::min(block, tokens.size() - begin);
    decode(tokens.subspan(begin, count));
    for (size_t i = 0; i < count && begin + i + 1 < tokens.size(); ++i) {
      const llama_token token = tokens[begin + i + 1];
      const double nll = NegativeLogLikelihood(logits(static_cast<int32_t>(i)), token);
      score.nll += nll;
      score.losses.push_back({static_cast<int64_t>(begin + i + 1), token, nll});
    }
    progress.Add(static_cast<int64_t>(count));
    begin += count;
  }
  score.tokens = static_cast<int64_t>(score.losses.size());
  if (score.tokens > 0) score.nll /= static_cast<double>(score.tokens);
  score.seconds = progress.Seconds();
  return score;
}

LossFile::LossFile(const std::string& path) : path_(path), unfinished_(path + ".unfinished") {
  if (!std::filesystem::is_directory(path)) file_ = std::fopen(unfinished_.c_str(), "w");
  if (file_ == nullptr) throw Failure("--losses: cannot write " + path);
  std::fprintf(file_, "row\tposition\ttoken\tnll\n");
}

LossFile::~LossFile() {
  if (file_ != nullptr) std::fclose(file_);
  std::error_code ignored;
  std::filesystem::remove(unfinished_, ignored);
}

void LossFile::Add(size_t row, int64_t first, const Score& score) {
  for (const TokenLoss& loss : score.losses) {
    std::fprintf(file_, "%zu\t%lld\t%d\t%.9g\n", row, static_cast<long long>(first + loss.position), loss.token,
                 loss.nll);
  }
}

void LossFile::Finish() {
  const bool written = std::ferror(file_) == 0;
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  std::error_code error;
  if (written && closed) std::filesystem::rename(unfinished_, path_, error);
  if (!written || !closed || error) throw Failure("--losses: cannot write " + path_);
}

}  // namespace mneme::llama
