// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/text.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>

#include "hosts/llamacpp/main/failure.h"
#include "hosts/llamacpp/main/utf8.h"

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

namespace {

std::string ReadFile(const std::string& path) {
  if (path == "-") return std::string(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw Failure("cannot read " + path);
  return text;
}

}  // namespace

std::vector<llama_token> ReadText(const llama_model* model, const TextSettings& settings) {
  if (settings.files.size() > 1 && (settings.bytes > 0 || settings.last > 0)) {
    throw UsageError("--bytes and --last take one text file, got " + std::to_string(settings.files.size()));
  }
  const llama_vocab* vocabulary = llama_model_get_vocab(model);
  const size_t begin = llama_vocab_get_add_bos(vocabulary) ? 1 : 0;
  std::vector<llama_token> tokens;
  for (const std::string& file : settings.files) {
    std::string text = CheckUtf8(ReadFile(file), file == "-" ? "the standard input" : file);
    if (settings.bytes > 0 && static_cast<size_t>(settings.bytes) < text.size()) {
      text.resize(static_cast<size_t>(settings.bytes));
      text.resize(WithoutCutCharacter(text).size());
    }
    std::vector<llama_token> of_file = Tokenise(model, text, /*special=*/false);
    if (settings.last > 0 && static_cast<size_t>(settings.last) < of_file.size() + begin) {
      of_file.erase(of_file.begin(), of_file.end() - (settings.last - static_cast<int64_t>(begin)));
    }
    if (begin == 1) tokens.push_back(llama_vocab_bos(vocabulary));
    tokens.insert(tokens.end(), of_file.begin(), of_file.end());
  }
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
