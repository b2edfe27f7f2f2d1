// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_HOSTS_LLAMACPP_TESTING_H_
#define MNEME_TESTS_HOSTS_LLAMACPP_TESTING_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "hosts/llamacpp/main/session.h"
#include "hosts/llamacpp/main/settings.h"
#include "tests/hosts/llamacpp/plain.h"

namespace mneme::llama {

// The model files. Models are loaded once a process.
std::string SmolPath();
std::string GemmaPath();
llama_model* Smol();
llama_model* Gemma();

// The same model with the weights of its layers de-quantised to f32, in a temporary file. llama.cpp rounds the inputs
// of quantised layers to 8 bits, which makes a difference of 1e-7 in one layer a visible one some layers on: llama.cpp
// with batches of 256 and llama.cpp with batches of 32 are a KL of 3e-3 apart on SmolLM2's Q4_1 weights. With f32
// weights two ways of computing the same thing can be told from two different things.
class Dequantised {
 public:
  explicit Dequantised(const std::string& path);
  const std::string& path() const { return path_; }
  llama_model* model() const { return model_.get(); }

 private:
  const TemporaryFolder folder_;
  const std::string path_ = folder_.path() + "/f32.gguf";
  ModelPtr model_;
};

// Settings for a test: two threads, unless said otherwise the defaults.
ModelSettings SettingsFor(const std::string& path);

// Tokens [begin, begin + count) of the text under the model's tokenizer, after its begin-of-text token where it has
// one.
std::vector<llama_token> TextTokens(const llama_model* model, int64_t begin, int64_t count);

// How far two predictions of the same tokens are apart.
struct Distance {
  int64_t positions = 0;
  int64_t same_argmax = 0;
  double divergence = 0.0;      // sum of KL(expected || actual), nats
  double nll_difference = 0.0;  // sum of nll(actual) - nll(expected)

  double MeanDivergence() const { return divergence / static_cast<double>(positions); }
  double SameArgmax() const { return static_cast<double>(same_argmax) / static_cast<double>(positions); }
  double MeanNllDifference() const { return nll_difference / static_cast<double>(positions); }
  // `next`: the token that came.
  void Add(std::span<const float> expected, std::span<const float> actual, llama_token next);
};

// One batch of tokens of any sequences.
class Batch {
 public:
  void Add(llama_token token, llama_seq_id sequence, bool logits);
  llama_batch get();
  size_t size() const { return tokens_.size(); }

 private:
  std::vector<llama_token> tokens_;
  std::vector<llama_seq_id> sequences_;
  std::vector<llama_seq_id*> pointers_;
  std::vector<int32_t> counts_;
  std::vector<int8_t> logits_;
};

}  // namespace mneme::llama

#endif  // MNEME_TESTS_HOSTS_LLAMACPP_TESTING_H_
