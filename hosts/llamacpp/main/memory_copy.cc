// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/main/memory_copy.h"

#include <algorithm>
#include <vector>

#include "hosts/llamacpp/main/failure.h"
#include "hosts/llamacpp/src/model_shape.h"

namespace mneme::llama {
namespace {

constexpr char kName[] = "copy";
constexpr int64_t kStep = 1024;  // tokens copied at once

}  // namespace

MemoryCopy::MemoryCopy(const Session& session, const Memory& original, const ThreadsPtr& threads,
                       std::span<const llama_token> tokens)
    : store_(folder_.path(), threads) {
  const mneme_memory_info info = original.Info();
  Create(session, info);
  const int64_t pinned = std::min(info.pinned_tokens, info.next_token);
  const int64_t kept = std::max(info.first_kept, pinned);
  CopyTokens(session, original, 0, pinned, /*evicted=*/false, tokens);
  CopyTokens(session, original, pinned, kept, /*evicted=*/true, tokens);
  CopyTokens(session, original, kept, info.next_token, /*evicted=*/false, tokens);
  if (memory_->Info().tokens > info.tokens) CheckEngine(mneme_memory_evict(memory_->get(), info.tokens));
}

void MemoryCopy::Create(const Session& session, const mneme_memory_info& info) {
  mneme_memory_options options = MNEME_MEMORY_OPTIONS_INIT;
  options.stored_dtype = info.stored_dtype;
  options.keys_rotated = info.keys_rotated;
  options.max_tokens = info.max_tokens;
  options.pinned_tokens = info.pinned_tokens;
  const mneme_card* card = mneme_llama_get_card(session.adapter());
  mneme_memory* created = nullptr;
  CheckEngine(mneme_memory_create(store_.get(), kName, card, &options, &created));
  CheckEngine(mneme_memory_close(created));
  memory_ = std::make_unique<Memory>(store_, kName, session, /*create=*/false, 0, "");
}

void MemoryCopy::CopyTokens(const Session& session, const Memory& original, int64_t begin, int64_t end, bool evicted,
                            std::span<const llama_token> tokens) {
  ModelShape shape;
  if (const Status status = ReadModelShape(session.model(), &shape); !status.ok()) throw Failure(status.message());
  const int32_t* layers = nullptr;
  const size_t count = mneme_llama_get_layers(session.adapter(), &layers);
  for (int64_t first = begin; first < end; first += kStep) {
    const int64_t some = std::min(kStep, end - first);
    for (size_t i = 0; i < count; ++i) {
      const LayerShape& layer = shape.layers[static_cast<size_t>(layers[i])];
      const int64_t key_shape[] = {some, layer.kv_heads, layer.key_dim};
      const int64_t value_shape[] = {some, layer.kv_heads, layer.value_dim};
      std::vector<float> keys(static_cast<size_t>(some * layer.kv_heads * layer.key_dim));
      std::vector<float> values(static_cast<size_t>(some * layer.kv_heads * layer.value_dim));
      const mneme_tensor key_tensor = {keys.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, key_shape, nullptr};
      const mneme_tensor value_tensor = {values.data(), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, value_shape, nullptr};
      if (!evicted) {
        mneme_memory_read_args read = MNEME_MEMORY_READ_ARGS_INIT;
        read.layer = layers[i];
        read.begin = first;
        read.tokens = some;
        read.keys = &key_tensor;
        read.values = &value_tensor;
        CheckEngine(mneme_memory_read(original.get(), &read));
      }
      mneme_memory_append_args append = MNEME_MEMORY_APPEND_ARGS_INIT;
      append.layer = layers[i];
      append.keys = &key_tensor;
      append.values = &value_tensor;
      append.token_ids = i == 0 ? tokens.data() + first : nullptr;
      CheckEngine(mneme_memory_append(memory_->get(), &append));
    }
    CheckEngine(mneme_memory_commit(memory_->get(), MNEME_DURABILITY_BUFFERED, nullptr));
  }
}

}  // namespace mneme::llama
