// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_PLAIN_CONTEXT_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_PLAIN_CONTEXT_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>

#include "hosts/llamacpp/main/session.h"

namespace mneme::llama {

// A context without an adapter, otherwise as a Session makes it: what a memory is compared with.
class PlainContext {
 public:
  // room: tokens that the cache holds; 0: as many as a Session's.
  PlainContext(llama_model* model, const ModelSettings& settings, uint32_t room = 0) {
    llama_context_params params = WindowParams(settings);
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (room > 0) params.n_ctx = room;
    context_ = NewContext(model, params);
  }

  void Clear() { llama_memory_clear(llama_get_memory(context_.get()), true); }

  // Of sequence 0, at most a batch. Throws Failure.
  void Decode(std::span<const llama_token> tokens) {
    const llama_batch batch =
        llama_batch_get_one(const_cast<llama_token*>(tokens.data()), static_cast<int32_t>(tokens.size()));
    if (llama_decode(context_.get(), batch) != 0) throw Failure("llama_decode failed");
  }

 private:
  ContextPtr context_;
};

// How long `work` takes.
inline double SecondsOf(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_PLAIN_CONTEXT_H_
