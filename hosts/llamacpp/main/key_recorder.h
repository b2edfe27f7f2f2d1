// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_KEY_RECORDER_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_KEY_RECORDER_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hosts/llamacpp/main/settings.h"
#include "hosts/llamacpp/src/model_shape.h"
#include "llama.h"

namespace mneme::llama {

// What of a text is recorded: the keys of its first `rows` tokens, and `queries` queries of the tokens after these.
struct RecordingPlan {
  int64_t rows = 0;
  int64_t queries = 0;

  // Neighbours ask for much the same, so only one token in so many gives a query.
  static constexpr int64_t kQueryStride = 8;
  int64_t tokens() const { return rows + queries * kQueryStride; }
  // The number of the query that `token` gives; -1: none.
  int64_t QueryOf(int64_t token) const {
    const int64_t after = token - rows;
    return after >= 0 && after % kQueryStride == kQueryStride - 1 ? after / kQueryStride : -1;
  }
};

// One layer's, before rotary embedding.
struct LayerRecording {
  int32_t layer = 0;
  std::vector<float> keys;     // [kv_heads][rows][key_dim]
  std::vector<float> queries;  // [q_heads][queries][key_dim]
};

// Reads the first plan.tokens() of `tokens` block by block and records `layers` (ascending, of the model). Without any
// memory: a token sees the block before its own and the first `pinned` tokens. What lies above the last of the layers
// is not computed. Throws Failure.
std::vector<LayerRecording> RecordKeys(const llama_model* model, const ModelShape& shape, const ModelSettings& settings,
                                       const std::vector<int32_t>& layers, const RecordingPlan& plan,
                                       std::span<const llama_token> tokens, const std::string& title);

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_KEY_RECORDER_H_
