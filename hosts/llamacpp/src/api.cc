// SPDX-License-Identifier: Apache-2.0
// The C functions of mneme_llama.h: argument checks, exceptions and the last error; the work is in Adapter.
#include <cstddef>
#include <cstring>
#include <new>
#include <string>

#include "hosts/llamacpp/include/mneme_llama.h"
#include "hosts/llamacpp/src/adapter.h"
#include "hosts/llamacpp/src/shared_threads.h"

using mneme::llama::Adapter;
using mneme::llama::Invalid;
using mneme::llama::SharedThreads;
using mneme::llama::Status;

struct mneme_llama {
  std::unique_ptr<Adapter> adapter;
};
struct mneme_llama_threads {
  std::unique_ptr<SharedThreads> threads;
};

namespace {

std::string& LastError() {
  thread_local std::string message;
  return message;
}

// Runs `body`, which returns a Status, and keeps what went wrong.
template <typename Body>
mneme_status Guarded(const char* function, const Body& body) noexcept {
  mneme_status code = MNEME_STATUS_INTERNAL;
  try {
    Status status;
    try {
      status = body();
    } catch (const std::bad_alloc&) {
      status = {MNEME_STATUS_RESOURCE_EXHAUSTED, "out of memory"};
    } catch (const std::exception& error) {
      status = {MNEME_STATUS_INTERNAL, error.what()};
    }
    code = status.code();
    if (code != MNEME_OK) LastError() = std::string(function) + ": " + status.message();
  } catch (...) {
    // Even the message found no memory; the code still says what happened.
  }
  return code;
}

Status NullArgument(const char* name) {
  return Invalid(std::string(name) + ": is NULL");
}

void SetDefaults(mneme_llama_options* options) {
  if (options->position_policy == MNEME_POSITION_DEFAULT) options->position_policy = MNEME_POSITION_FIXED_DISTANCE;
  if (options->distance == 0) options->distance = 2048;
  if (options->top_k == 0) options->top_k = 32;
  if (options->decay_beyond == 0) options->decay_beyond = 1;
  if (options->pinned_tokens == 0) options->pinned_tokens = 16;
  if (options->pinned_tokens == -1) options->pinned_tokens = 0;
  if (options->window == 0) options->window = 512;
  if (options->restart_beyond == 0) options->restart_beyond = 65536;
}

// Callers may have been built with an older, shorter struct; the rest of it counts as zero.
Status ReadOptions(const mneme_llama_options* given, mneme_llama_options* options) {
  *options = MNEME_LLAMA_OPTIONS_INIT;
  if (given == nullptr) {
    SetDefaults(options);
    return Status();
  }
  if (given->struct_size < offsetof(mneme_llama_options, layers) || given->struct_size > sizeof(*options)) {
    return Invalid("options: struct_size is " + std::to_string(given->struct_size) + ", expected " +
                   std::to_string(sizeof(*options)) + " (MNEME_LLAMA_OPTIONS_INIT)");
  }
  std::memcpy(options, given, given->struct_size);
  SetDefaults(options);
  return Status();
}

}  // namespace

extern "C" {

const char* mneme_llama_last_error(void) {
  return LastError().c_str();
}

mneme_status mneme_llama_create(const llama_model* model, const mneme_llama_options* options, mneme_llama** adapter) {
  return Guarded(__func__, [&]() -> Status {
    if (model == nullptr) return NullArgument("model");
    if (adapter == nullptr) return NullArgument("adapter");
    mneme_llama_options read;
    MNEME_LLAMA_RETURN_IF_ERROR(ReadOptions(options, &read));
    auto made = std::make_unique<mneme_llama>();
    MNEME_LLAMA_RETURN_IF_ERROR(Adapter::Create(model, read, &made->adapter));
    *adapter = made.release();
    return Status();
  });
}

void mneme_llama_release(mneme_llama* adapter) {
  delete adapter;
}

const mneme_card* mneme_llama_get_card(const mneme_llama* adapter) {
  return adapter == nullptr ? nullptr : adapter->adapter->card();
}

size_t mneme_llama_get_layers(const mneme_llama* adapter, const int32_t** layers) {
  if (adapter == nullptr) return 0;
  if (layers != nullptr) *layers = adapter->adapter->layers().data();
  return adapter->adapter->layers().size();
}

mneme_status mneme_llama_fill_memory_options(const mneme_llama* adapter, int64_t tokens,
                                             mneme_memory_options* options) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    if (options == nullptr) return NullArgument("options");
    return adapter->adapter->FillMemoryOptions(tokens, options);
  });
}

mneme_status mneme_llama_prepare(mneme_llama* adapter, llama_context_params* params) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    if (params == nullptr) return NullArgument("params");
    return adapter->adapter->Prepare(params);
  });
}

mneme_status mneme_llama_bind(mneme_llama* adapter, llama_context* ctx) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    if (ctx == nullptr) return NullArgument("ctx");
    return adapter->adapter->Bind(ctx);
  });
}

mneme_status mneme_llama_threads_create(int32_t threads, ggml_threadpool* pool, mneme_llama_threads** made) {
  return Guarded(__func__, [&]() -> Status {
    if (made == nullptr) return NullArgument("made");
    auto object = std::make_unique<mneme_llama_threads>();
    MNEME_LLAMA_RETURN_IF_ERROR(SharedThreads::Create(threads, pool, &object->threads));
    *made = object.release();
    return Status();
  });
}

void mneme_llama_threads_release(mneme_llama_threads* threads) {
  delete threads;
}

mneme_status mneme_llama_threads_fill_store_options(mneme_llama_threads* threads, mneme_store_options* options) {
  return Guarded(__func__, [&]() -> Status {
    if (threads == nullptr) return NullArgument("threads");
    if (options == nullptr) return NullArgument("options");
    options->parallel_for = &SharedThreads::ParallelFor;
    options->parallel_for_context = threads->threads.get();
    options->parallel_for_width = threads->threads->count();
    return Status();
  });
}

mneme_status mneme_llama_set_threads(mneme_llama* adapter, mneme_llama_threads* threads) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    return adapter->adapter->ShareThreads(threads == nullptr ? nullptr : threads->threads.get());
  });
}

mneme_status mneme_llama_set_memory(mneme_llama* adapter, llama_seq_id sequence, mneme_memory* memory,
                                    mneme_llama_mode mode) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    return adapter->adapter->SetMemory(sequence, memory, mode);
  });
}

mneme_status mneme_llama_resume(mneme_llama* adapter, llama_seq_id sequence, int64_t tokens, mneme_progress_fn progress,
                                void* context) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    return adapter->adapter->Resume(sequence, tokens, progress, context);
  });
}

mneme_status mneme_llama_save_window(mneme_llama* adapter, llama_seq_id sequence) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    return adapter->adapter->SaveWindow(sequence);
  });
}

mneme_status mneme_llama_restore_window(mneme_llama* adapter, llama_seq_id sequence) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    return adapter->adapter->RestoreWindow(sequence);
  });
}

mneme_status mneme_llama_rewind(mneme_llama* adapter, llama_seq_id sequence, int64_t tokens) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    return adapter->adapter->Rewind(sequence, tokens);
  });
}

mneme_status mneme_llama_decode(mneme_llama* adapter, llama_batch batch) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    return adapter->adapter->Decode(batch);
  });
}

llama_pos mneme_llama_get_next_position(const mneme_llama* adapter, llama_seq_id sequence) {
  return adapter == nullptr ? 0 : adapter->adapter->NextPosition(sequence);
}

mneme_status mneme_llama_slide(mneme_llama* adapter, llama_seq_id sequence, int64_t keep) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    return adapter->adapter->Slide(sequence, keep);
  });
}

mneme_status mneme_llama_get_stats(const mneme_llama* adapter, mneme_llama_stats* stats) {
  return Guarded(__func__, [&]() -> Status {
    if (adapter == nullptr) return NullArgument("adapter");
    if (stats == nullptr) return NullArgument("stats");
    if (stats->struct_size != sizeof(*stats)) return Invalid("stats: struct_size is not MNEME_LLAMA_STATS_INIT's");
    adapter->adapter->FillStats(stats);
    return Status();
  });
}

}  // extern "C"
