// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/status.h"
#include "capi/src/attend_args.h"
#include "capi/src/device_tensors.h"
#include "capi/src/handles.h"
#include "capi/src/host_progress.h"
#include "capi/src/pending_handle.h"
#include "capi/src/structs.h"
#include "capi/src/tensors.h"
#include "index/key_index.h"
#include "memory/segment/segment_rows.h"

namespace mneme::capi {
namespace {

constexpr int64_t kMaxSegmentTokens = int64_t{1} << 32;

absl::StatusOr<MemoryOptions> ReadOptions(const mneme_memory_options* given_options, const ModelCard& card) {
  const mneme_memory_options none = MNEME_MEMORY_OPTIONS_INIT;
  MNEME_ASSIGN_OR_RETURN(const mneme_memory_options given,
                         ReadStruct("options", given_options != nullptr ? given_options : &none));
  if (given.stored_dtype < MNEME_DTYPE_F32 || given.stored_dtype > MNEME_DTYPE_I8) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.stored_dtype: expected MNEME_DTYPE_F32, MNEME_DTYPE_F16, MNEME_DTYPE_BF16 or "
                     "MNEME_DTYPE_I8 (1 to 4), or 0 for the default, got ",
                     given.stored_dtype));
  }
  for (const auto& [name, flag] :
       {std::pair{"normalise_keys", given.normalise_keys}, std::pair{"keys_rotated", given.keys_rotated}}) {
    if (flag != 0 && flag != 1) {
      return absl::InvalidArgumentError(absl::StrCat("options.", name, ": expected 0 or 1, got ", flag));
    }
  }
  if (given.segment_tokens > kMaxSegmentTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.segment_tokens: expected at most 2^32, got ", given.segment_tokens));
  }
  if (given.max_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("options.max_bytes: expected 0 or more, got ", given.max_bytes));
  }
  MemoryOptions options;
  options.stored_dtype = DTypeOf(given.stored_dtype);
  options.normalise_keys = given.normalise_keys != 0;
  options.keys_rotated = given.keys_rotated != 0;
  options.max_tokens = given.max_tokens;
  options.pinned_tokens = given.pinned_tokens;
  if (given.segment_tokens != 0) options.segment_tokens = given.segment_tokens;
  if (given.index != nullptr) {
    options.index_spec = given.index;
    if (const absl::Status parsed = ParseIndexSpec(options.index_spec).status(); !parsed.ok()) {
      return absl::Status(parsed.code(), absl::StrCat("options.index: expected a kind of index, got \"", given.index,
                                                      "\": ", parsed.message()));
    }
  }
  // Without layers the card is refused later, and there is no size of a token to divide by.
  if (given.max_bytes > 0 && !card.layers.empty()) {
    const int64_t token_bytes = TokenBytes(card, options.stored_dtype);
    const int64_t tokens = given.max_bytes / token_bytes;
    if (tokens <= options.pinned_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("options.max_bytes: expected room for more than the ",
                                                     options.pinned_tokens, " pinned tokens of ", token_bytes,
                                                     " bytes each, got ", given.max_bytes));
    }
    options.max_tokens = options.max_tokens > 0 ? std::min(options.max_tokens, tokens) : tokens;
  }
  return options;
}

void CopyText(const std::string& text, char* out, size_t size) {
  const size_t n = std::min(text.size(), size - 1);
  std::memcpy(out, text.data(), n);
  std::memset(out + n, 0, size - n);
}

absl::Status Append(const std::shared_ptr<MemoryObject>& object, const mneme_memory_append_args& args) {
  DeviceTensors on_device(object->store->store.get(), args.stream);
  RowTensor keys, values;
  MNEME_RETURN_IF_ERROR(on_device.Read("args.keys", args.keys, &keys));
  MNEME_RETURN_IF_ERROR(on_device.Read("args.values", args.values, &values));
  MNEME_RETURN_IF_ERROR(CheckPositions("args.positions", args.positions, keys.rows));
  if (const int place = object->memory->card().FindLayer(args.layer); place >= 0) {
    const LayerCard& layer = object->memory->card().layers[static_cast<size_t>(place)];
    MNEME_RETURN_IF_ERROR(
        CheckShape("args.keys", keys.rows, keys.heads, keys.dim, keys.rows, layer.kv_heads, layer.key_dim));
    MNEME_RETURN_IF_ERROR(
        CheckShape("args.values", values.rows, values.heads, values.dim, keys.rows, layer.kv_heads, layer.value_dim));
  }
  MNEME_RETURN_IF_ERROR(on_device.CheckNotCaptured());
  MNEME_RETURN_IF_ERROR(on_device.CopyToHost());
  return object->memory->Append(args.layer, keys, values, args.positions, args.token_ids);
}

absl::Status Read(const std::shared_ptr<MemoryObject>& object, const mneme_memory_read_args& args) {
  if (args.begin < 0 || args.begin > kMaxPosition || args.tokens < 0 || args.tokens > kMaxPosition) {
    return absl::OutOfRangeError(
        absl::StrCat("args.begin, args.tokens: expected 0 to 2^48, got ", args.begin, " and ", args.tokens));
  }
  ReadRequest request;
  request.layer = args.layer;
  request.begin = args.begin;
  request.tokens = args.tokens;
  request.positions = args.positions;
  request.token_ids = args.token_ids;
  const int place = object->memory->card().FindLayer(args.layer);
  if (place < 0) {
    return absl::InvalidArgumentError(absl::StrCat("args.layer: expected one of the card's, got ", args.layer));
  }
  const LayerCard& layer = object->memory->card().layers[static_cast<size_t>(place)];
  const auto read = [&](absl::string_view name, const mneme_tensor* tensor, int32_t dim,
                        MutableRowTensor& out) -> absl::Status {
    if (tensor == nullptr) return absl::OkStatus();
    MNEME_ASSIGN_OR_RETURN(out, ReadMutableRowTensor(name, tensor));
    if (out.dtype != DType::kF32) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ".dtype: expected MNEME_DTYPE_F32 (1), got ", tensor->dtype));
    }
    return CheckShape(name, out.rows, out.heads, out.dim, args.tokens, layer.kv_heads, dim);
  };
  MNEME_RETURN_IF_ERROR(read("args.keys", args.keys, layer.key_dim, request.keys));
  MNEME_RETURN_IF_ERROR(read("args.values", args.values, layer.value_dim, request.values));
  // Before anything is copied: tokens that are evicted may still have rows in a segment that others need.
  const std::shared_ptr<const MemoryState> state = object->memory->TakeSnapshot().state;
  const int64_t evicted = std::max(args.begin, state->pinned_tokens);
  if (evicted < std::min(args.begin + args.tokens, state->first_kept)) {
    return absl::OutOfRangeError(absl::StrCat("args.begin, args.tokens: expected tokens that are held, got [",
                                              args.begin, ", ", args.begin + args.tokens, "), of which ", evicted,
                                              " is evicted"));
  }
  return object->memory->Read(request);
}

mneme_memory_info InfoOf(const Memory& memory) {
  const MemoryInfo info = memory.Info();
  mneme_memory_info result = MNEME_MEMORY_INFO_INIT;
  result.next_token = info.next_token;
  result.tokens = info.tokens;
  result.tokens_durable = info.tokens_durable;
  result.first_kept = info.first_kept;
  result.pinned_tokens = memory.options().pinned_tokens;
  result.segments = info.segments;
  result.tail_tokens = info.tail_tokens;
  result.indexes = info.indexes;
  result.bytes = info.bytes;
  result.ram_bytes = info.ram_bytes;
  result.attachment_bytes = info.attachment_bytes;
  result.layers = static_cast<int32_t>(memory.card().layers.size());
  result.stored_dtype = NumberOf(memory.options().stored_dtype);
  result.keys_rotated = memory.options().keys_rotated ? 1 : 0;
  result.normalise_keys = memory.options().normalise_keys ? 1 : 0;
  result.max_tokens = memory.options().max_tokens;
  result.segment_tokens = memory.options().segment_tokens;
  CopyText(memory.card().model_name, result.model_name, sizeof(result.model_name));
  CopyText(memory.card().weights_fingerprint, result.weights_fingerprint, sizeof(result.weights_fingerprint));
  CopyText(memory.options().index_spec, result.index, sizeof(result.index));
  CopyText(memory.name(), result.name, sizeof(result.name));
  return result;
}

mneme_layer_desc DescOf(const LayerCard& layer) {
  mneme_layer_desc result = MNEME_LAYER_DESC_INIT;
  result.layer = layer.layer;
  result.q_heads = layer.query_heads;
  result.kv_heads = layer.kv_heads;
  result.key_dim = layer.key_dim;
  result.value_dim = layer.value_dim;
  result.scale = layer.scale;
  result.soft_cap = layer.soft_cap;
  result.window = layer.window;
  result.rotary_layout = static_cast<int32_t>(layer.rotary.layout);
  result.rotary_pairs = static_cast<int32_t>(layer.rotary.inverse_frequencies.size());
  if (result.rotary_pairs > 0) result.rotary_inverse_frequencies = layer.rotary.inverse_frequencies.data();
  result.rotary_magnitude = layer.rotary.magnitude;
  return result;
}

}  // namespace
}  // namespace mneme::capi

extern "C" {

using namespace mneme;        // NOLINT: the entry points only
using namespace mneme::capi;  // NOLINT

mneme_status mneme_memory_create(mneme_store* store, const char* name, const mneme_card* card,
                                 const mneme_memory_options* options, mneme_memory** memory) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    MNEME_ASSIGN_OR_RETURN(const std::string text, ReadName("name", name));
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<CardObject> model, FindHandle<CardObject>("card", card));
    if (memory == nullptr) return NullArgument("memory");
    MNEME_ASSIGN_OR_RETURN(const MemoryOptions given, ReadOptions(options, model->card));
    PendingHandle handle(object, text);
    MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> created, object->store->CreateMemory(text, model->card, given));
    *memory = handle.HandleOf(std::move(created));
    return absl::OkStatus();
  });
}

mneme_status mneme_memory_open(mneme_store* store, const char* name, const mneme_card* expected,
                               mneme_memory** memory) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    MNEME_ASSIGN_OR_RETURN(const std::string text, ReadName("name", name));
    std::shared_ptr<CardObject> model;
    if (expected != nullptr) {
      MNEME_ASSIGN_OR_RETURN(model, FindHandle<CardObject>("expected", expected));
    }
    if (memory == nullptr) return NullArgument("memory");
    PendingHandle handle(object, text);
    MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> opened,
                           object->store->OpenMemory(text, model != nullptr ? &model->card : nullptr));
    *memory = handle.HandleOf(std::move(opened));
    return absl::OkStatus();
  });
}

mneme_status mneme_memory_fork(mneme_memory* memory, int64_t at_token, const char* new_name, mneme_memory** fork) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    MNEME_ASSIGN_OR_RETURN(const std::string text, ReadName("new_name", new_name));
    if (fork == nullptr) return NullArgument("fork");
    PendingHandle handle(object->store, text);
    MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> child,
                           object->store->store->ForkMemory(object->memory, at_token, text));
    *fork = handle.HandleOf(std::move(child));
    return absl::OkStatus();
  });
}

mneme_status mneme_memory_drop(mneme_store* store, const char* name) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    MNEME_ASSIGN_OR_RETURN(const std::string text, ReadName("name", name));
    return object->store->DropMemory(text);
  });
}

mneme_status mneme_memory_drop_many(mneme_store* store, const char* const* names, size_t count) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    if (names == nullptr && count > 0) return NullArgument("names");
    std::vector<std::string> texts;
    for (size_t i = 0; i < count; ++i) {
      MNEME_ASSIGN_OR_RETURN(std::string text, ReadName("names", names[i]));
      texts.push_back(std::move(text));
    }
    return object->store->DropMemories(texts);
  });
}

mneme_status mneme_memory_close(mneme_memory* memory) {
  if (memory == nullptr) return MNEME_OK;
  return Guard([&]() -> absl::Status {
    std::shared_ptr<StoreObject> store;
    std::shared_ptr<Memory> closed;
    {
      MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
      store = object->store;
      closed = object->memory;
    }
    MutexLock lock(&store->mutex);
    const auto opened = store->opened.find(closed->name());
    if (opened == store->opened.end() || opened->second.handle != memory) {
      return absl::AbortedError("memory is busy: another call closes it");
    }
    if (opened->second.count > 1) {
      --opened->second.count;
      return store->store->CloseMemory(closed);
    }
    // The handle first: a running call refuses it, and then nothing has changed.
    MNEME_RETURN_IF_ERROR(RemoveHandle<MemoryObject>("memory", memory));
    store->opened.erase(opened);
    return store->store->CloseMemory(closed);
  });
}

mneme_status mneme_memory_get_info(mneme_memory* memory, mneme_memory_info* info) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    if (info == nullptr) return NullArgument("info");
    return WriteStruct("info", InfoOf(*object->memory), info);
  });
}

mneme_status mneme_memory_get_layer(mneme_memory* memory, int32_t index, mneme_layer_desc* layer) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    if (layer == nullptr) return NullArgument("layer");
    const std::vector<LayerCard>& layers = object->memory->card().layers;
    if (index < 0 || static_cast<size_t>(index) >= layers.size()) {
      return absl::OutOfRangeError(
          absl::StrCat("index: expected 0 to ", layers.size() - 1, ", the layers of the card, got ", index));
    }
    return WriteStruct("layer", DescOf(layers[static_cast<size_t>(index)]), layer);
  });
}

mneme_status mneme_memory_append(mneme_memory* memory, const mneme_memory_append_args* args) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    const LatencyTimer timer(object->store->Latency(&CallLatencies::append));
    MNEME_ASSIGN_OR_RETURN(const mneme_memory_append_args given, ReadStruct("args", args));
    return Append(object, given);
  });
}

mneme_status mneme_memory_commit(mneme_memory* memory, mneme_durability durability, int64_t* tokens_durable) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    const LatencyTimer timer(object->store->Latency(&CallLatencies::commit));
    if (durability != MNEME_DURABILITY_BUFFERED && durability != MNEME_DURABILITY_SYNCED) {
      return absl::InvalidArgumentError(
          absl::StrCat("durability: expected MNEME_DURABILITY_BUFFERED (0) or MNEME_DURABILITY_SYNCED (1), got ",
                       static_cast<int>(durability)));
    }
    return object->memory->Commit(durability == MNEME_DURABILITY_SYNCED ? Durability::kSynced : Durability::kBuffered,
                                  tokens_durable);
  });
}

mneme_status mneme_memory_truncate(mneme_memory* memory, int64_t tokens) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    return object->memory->Truncate(tokens);
  });
}

mneme_status mneme_memory_evict(mneme_memory* memory, int64_t keep_tokens) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    return object->memory->Evict(keep_tokens);
  });
}

mneme_status mneme_memory_maintain(mneme_memory* memory, mneme_progress_fn progress, void* context) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    return object->memory->Maintain(WrapProgress(progress, context));
  });
}

mneme_status mneme_snapshot_create(mneme_memory* memory, mneme_snapshot** snapshot) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    if (snapshot == nullptr) return NullArgument("snapshot");
    *snapshot =
        NewHandle(std::make_shared<SnapshotObject>(object->store, object->memory, object->memory->TakeSnapshot()));
    return absl::OkStatus();
  });
}

void mneme_snapshot_release(mneme_snapshot* snapshot) {
  if (snapshot == nullptr) return;
  // A release cannot be refused: a call that still reads the snapshot keeps it.
  Guard([&] { return RemoveHandle<SnapshotObject>("snapshot", snapshot, true); });
}

mneme_status mneme_memory_read(mneme_memory* memory, const mneme_memory_read_args* args) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    MNEME_ASSIGN_OR_RETURN(const mneme_memory_read_args given, ReadStruct("args", args));
    return Read(object, given);
  });
}

}  // extern "C"
