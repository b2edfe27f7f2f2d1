// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/text.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include "hosts/llamacpp/main/failure.h"

namespace mneme::llama {

std::vector<llama_token> Tokenise(const llama_model* model, const std::string& text, bool special) {
  const llama_vocab* vocabulary = llama_model_get_vocab(model);
  const auto size = static_cast<int32_t>(text.size());
  std::vector<llama_token> tokens(text.size() + 8);
  int32_t count = llama_tokenize(vocabulary, text.c_str(), size, tokens.data(), static_cast<int32_t>(tokens.size()),
                                 /*add_special=*/false, special);
  if (count < 0) {
    tokens.resize(static_cast<size_t>(-count));
    count = llama_tokenize(vocabulary, text.c_str(), size, tokens.data(), -count, false, special);
  }
  tokens.resize(static_cast<size_t>(std::max(count, 0)));
  return tokens;
}

std::vector<llama_token> ReadText(const llama_model* model, const TextSettings& settings) {
  std::ifstream file(settings.file, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw Failure("cannot read " + settings.file);
  if (settings.bytes > 0 && static_cast<size_t>(settings.bytes) < text.size()) {
    text.resize(static_cast<size_t>(settings.bytes));
  }
  std::vector<llama_token> tokens = Tokenise(model, text, /*special=*/false);
  const llama_vocab* vocabulary = llama_model_get_vocab(model);
  const size_t begin = llama_vocab_get_add_bos(vocabulary) ? 1 : 0;
  if (settings.last > 0 && static_cast<size_t>(settings.last) < tokens.size() + begin) {
    tokens.erase(tokens.begin(), tokens.end() - (settings.last - static_cast<int64_t>(begin)));
  }
  if (begin == 1) tokens.insert(tokens.begin(), llama_vocab_bos(vocabulary));
  return tokens;
}

std::string TokenText(const llama_model* model, llama_token token) {
  std::string text(64, '\0');
  const llama_vocab* vocabulary = llama_model_get_vocab(model);
  int32_t size = llama_token_to_piece(vocabulary, token, text.data(), static_cast<int32_t>(text.size()), 0, false);
  if (size < 0) {
    text.resize(static_cast<size_t>(-size));
    size = llama_token_to_piece(vocabulary, token, text.data(), -size, 0, false);
  }
  text.resize(static_cast<size_t>(std::max(size, 0)));
  return text;
}

double NegativeLogLikelihood(std::span<const float> logits, llama_token token) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum) - logits[static_cast<size_t>(token)];
}

}  // namespace mneme::llama
