// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_HOSTS_LLAMACPP_MAIN_SESSION_H_
#define MNEME_HOSTS_LLAMACPP_MAIN_SESSION_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hosts/llamacpp/include/mneme_llama.h"
#include "hosts/llamacpp/main/failure.h"
#include "hosts/llamacpp/main/settings.h"

namespace mneme::llama {

struct ModelDeleter {
  void operator()(llama_model* model) const { llama_model_free(model); }
};
struct ContextDeleter {
  void operator()(llama_context* context) const { llama_free(context); }
};
struct AdapterDeleter {
  void operator()(mneme_llama* adapter) const { mneme_llama_release(adapter); }
};
using ModelPtr = std::unique_ptr<llama_model, ModelDeleter>;
using ContextPtr = std::unique_ptr<llama_context, ContextDeleter>;
struct ThreadsDeleter {
  void operator()(mneme_llama_threads* threads) const { mneme_llama_threads_release(threads); }
};
using AdapterPtr = std::unique_ptr<mneme_llama, AdapterDeleter>;
using ThreadsPtr = std::unique_ptr<mneme_llama_threads, ThreadsDeleter>;

// `threads` as given, or DefaultThreads.
int32_t ThreadsOf(const ModelSettings& settings);
// For sessions and stores that take turns. Throws Failure.
ThreadsPtr MakeThreads(const ModelSettings& settings);
// Silences llama.cpp's log but for errors. Throws Failure.
ModelPtr LoadModel(const std::string& path);

// Of a context that holds windows of n_seq sequences, read block by block.
llama_context_params WindowParams(const ModelSettings& settings, int32_t n_seq = 1);
// Throws Failure.
ContextPtr NewContext(const llama_model* model, const llama_context_params& params);

// A model, its adapter and one context, for sequences that are read block by block.
class Session {
 public:
  // n_seq: how many sequences the context holds at once.
  Session(const llama_model* model, const ModelSettings& settings, int32_t n_seq = 1);

  mneme_llama* adapter() const { return adapter_.get(); }
  llama_context* context() const { return context_.get(); }
  const llama_model* model() const { return model_; }
  int32_t window() const { return window_; }

  // Has it take turns with a store that is served by these threads; they outlive both.
  void Share(const ThreadsPtr& threads);

  // Empties the sequence's window and gives it a memory.
  void Attach(llama_seq_id sequence, mneme_memory* memory, mneme_llama_mode mode);
  // Takes its memory away again.
  void Detach(llama_seq_id sequence);

  // Decodes tokens of sequence 0, at most a batch. logits: of every token, or of the last alone.
  void Decode(std::span<const llama_token> tokens, bool all_logits);
  // Of the i-th token of the last Decode. [vocabulary]
  std::span<const float> Logits(int32_t i) const;

 private:
  const llama_model* const model_;
  const int32_t window_;
  AdapterPtr adapter_;
  ContextPtr context_;
};

// kRead: without a writer's lock, beside a writer, and nothing is created.
enum class StoreUse { kRead, kWrite };

// A store that is closed at the end.
class Store {
 public:
  // On threads of its own, or on those of sessions. Throws Failure.
  Store(const std::string& path, int32_t threads, StoreUse use = StoreUse::kWrite);
  Store(const std::string& path, const ThreadsPtr& threads, StoreUse use = StoreUse::kWrite);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  mneme_store* get() const { return store_; }

 private:
  void Open(const std::string& path, mneme_store_options options, StoreUse use);

  mneme_store* store_ = nullptr;
};

// A memory of a store that is closed at the end.
class Memory {
 public:
  // Opens `name`, or creates it for `tokens` visible tokens (0: unbounded) if `create` and there is none.
  Memory(const Store& store, const std::string& name, const Session& session, bool create, int64_t tokens,
         const std::string& stored_type);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  mneme_memory* get() const { return memory_; }
  mneme_memory_info Info() const;
  // Throws UsageError if an option for new memories (--memory-tokens, which is `tokens`, --stored-type, --pinned) was
  // given and the memory, which was there before, is another.
  void CheckGiven(const CLI::App& command, const Session& session, int64_t tokens,
                  const std::string& stored_type) const;

 private:
  mneme_memory* memory_ = nullptr;
  bool created_ = false;
};

}  // namespace mneme::llama

#endif  // MNEME_HOSTS_LLAMACPP_MAIN_SESSION_H_
