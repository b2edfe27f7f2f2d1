// SPDX-License-Identifier: Apache-2.0
#include "memory/memory.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/arenas.h"
#include "base/status.h"
#include "memory/device/mirror.h"
#include "memory/segment/segment_writer.h"

namespace mneme {
namespace {

// As in Memorizing Transformers: x / sqrt(|x|^2 + 1e-6).
void NormaliseRow(float* row, int64_t dim) {
  double squares = 1e-6;
  for (int64_t i = 0; i < dim; ++i) squares += static_cast<double>(row[i]) * row[i];
  const auto factor = static_cast<float>(1.0 / std::sqrt(squares));
  for (int64_t i = 0; i < dim; ++i) row[i] *= factor;
}

// Encodes rows [first, first + n) of one head, one behind the other. False if one of them has a number that is not
// finite or cannot be stored; then `out` means nothing.
bool EncodeRows(const RowTensor& tensor, int64_t head, int64_t first, int64_t n, DType stored, bool normalise,
                std::vector<float>& scratch, char* out) {
  if (stored != DType::kI8 && !normalise) {
    const int64_t stride = tensor.row_stride * static_cast<int64_t>(DTypeSize(tensor.dtype));
    return EncodeFinite(tensor.dtype, tensor.Row(first, head), stride, n, tensor.dim, stored, out);
  }
  const auto dim = static_cast<size_t>(tensor.dim);
  scratch.resize(dim);
  for (int64_t row = first; row < first + n; ++row, out += RowBytes(stored, tensor.dim)) {
    ConvertToF32(tensor.dtype, tensor.Row(row, head), scratch.data(), dim);
    if (!AllFinite(DType::kF32, scratch.data(), dim)) return false;
    if (normalise) NormaliseRow(scratch.data(), tensor.dim);
    EncodeRow(scratch.data(), stored, out, tensor.dim);
    if (stored != DType::kI8 && !AllFinite(stored, out, dim)) return false;
  }
  return true;
}

size_t CardBytes(const ModelCard& card) {
  size_t bytes = AllocatedBytes(card.layers.capacity() * sizeof(LayerCard));
  for (const LayerCard& layer : card.layers) {
    const size_t frequencies = layer.rotary.inverse_frequencies.capacity() * sizeof(float);
    if (frequencies > 0) bytes += AllocatedBytes(frequencies);
  }
  return bytes;
}

absl::Status CheckShape(absl::string_view name, const RowTensor& tensor, int64_t rows, int64_t heads, int64_t dim) {
  if (tensor.rows == rows && tensor.heads == heads && tensor.dim == dim) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": expected shape [", rows, ", ", heads, ", ", dim, "], got [",
                                                 tensor.rows, ", ", tensor.heads, ", ", tensor.dim, "]"));
}

// Why a row of one head, among [first, first + n), cannot be stored. An infinite row would poison every softmax.
absl::Status RefusedRow(absl::string_view name, const RowTensor& tensor, int64_t head, int64_t first, int64_t n,
                        DType stored) {
  for (int64_t row = first; row < first + n; ++row) {
    if (!AllFinite(tensor.dtype, tensor.Row(row, head), static_cast<size_t>(tensor.dim))) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": expected finite numbers, got NaN or infinity in row ", row, " of head ", head));
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": expected numbers within the range of ", DTypeName(stored), ", which the memory stores (",
                   stored == DType::kF16 ? "65504" : "3.39e38", "), got a greater one in head ", head));
}

}  // namespace

int64_t TokensOf(const MemoryManifest& manifest) {
  if (manifest.segments.empty()) return manifest.first_kept;
  const SegmentRef& last = manifest.segments.back();
  return std::max(manifest.first_kept, last.first_token + last.rows);
}

absl::Status BusyError(absl::string_view name) {
  return absl::AbortedError(absl::StrCat("memory \"", name, "\" is busy: another call that changes it is running"));
}

Memory::Memory(Store* store, const MemoryManifest& manifest, IndexSpec spec)
    : seed_cache_(manifest.card.layers.size()),
      store_(store),
      name_(manifest.name),
      card_(manifest.card),
      options_(manifest.options),
      spec_(std::move(spec)),
      manifest_(manifest),
      tokens_durable_(TokensOf(manifest)) {}

Memory::~Memory() = default;

absl::StatusOr<std::shared_ptr<Memory>> Memory::Load(Store* store, MemoryManifest manifest) {
  MNEME_ASSIGN_OR_RETURN(IndexSpec spec, ParseIndexSpec(manifest.options.index_spec));
  std::shared_ptr<Memory> memory(new Memory(store, manifest, std::move(spec)));
  auto state = std::make_shared<MemoryState>();
  state->pinned_tokens = manifest.options.pinned_tokens;
  state->first_kept = manifest.first_kept;
  state->has_positions = manifest.has_positions;
  int64_t end = 0;
  for (size_t i = 0; i < manifest.segments.size(); ++i) {
    const SegmentRef& ref = manifest.segments[i];
    const bool last = i + 1 == manifest.segments.size();
    if (ref.first_token < end || ref.rows < 0 || ref.chunked_rows > ref.rows ||
        (ref.sealed ? ref.chunked_rows != ref.rows : !last)) {
      return absl::DataLossError(absl::StrCat(
          "memory \"", manifest.name, "\": its manifest contradicts itself at segment ", ref.id, " (entry ", i, ")"));
    }
    end = ref.first_token + ref.rows;
    if (ref.sealed) {
      state->sealed.push_back({store->SharedSegment(ref.id, manifest.card, manifest.options.stored_dtype, ref.rows),
                               ref.first_token, ref.rows});
      continue;
    }
    state->tail = std::make_shared<Segment>(ref.id, manifest.card, manifest.options.stored_dtype, &store->database(),
                                            store->segment_context(), ref.rows, ref.chunked_rows);
    state->tail_first = ref.first_token;
    MutexLock lock(&memory->mutator_);
    memory->tail_persisted_ = ref.rows;
    memory->tail_chunked_ = ref.chunked_rows;
  }
  if (state->tail == nullptr) {
    state->tail = memory->NewTail();
    // Everything may be evicted: then only first_kept tells where the next token stands.
    state->tail_first = std::max(end, manifest.first_kept);
  }
  store->RegisterSegment(state->tail);
  for (const IndexRef& ref : manifest.indexes) {
    absl::StatusOr<IndexSpec> ref_spec = ParseIndexSpec(ref.spec);
    if (!ref_spec.ok()) continue;  // of another build; its rows are scanned until they are indexed anew
    state->runs.push_back(
        std::make_shared<IndexRun>(ref.id, ref.first_token, ref.tokens, *std::move(ref_spec), manifest.card,
                                   &store->database(), !store->options().ignore_index_blobs, store->writable(),
                                   &store->index_counters(), [store](absl::string_view text) { store->Log(text); }));
  }
  memory->NewMirror();
  MutexLock lock(&memory->state_mutex_);
  memory->state_ = std::move(state);
  return memory;
}

void Memory::NewMirror() {
  // Where an index is wanted, what it finds is what the host asked for.
  if (store_->device() == nullptr || WantsIndexes()) return;
  absl::StatusOr<std::unique_ptr<MemoryMirror>> mirror =
      MemoryMirror::New(store_->device(), card_, options_.stored_dtype, options_.pinned_tokens);
  if (!mirror.ok()) return store_->device()->LogFailure(mirror.status());
  mirror_ = *std::move(mirror);
}

std::shared_ptr<Segment> Memory::NewTail() const {
  const SegmentId id = store_->writable() ? store_->database().NewSegmentId() : 0;
  return std::make_shared<Segment>(id, card_, options_.stored_dtype, &store_->database(), store_->segment_context(), 0,
                                   0);
}

absl::Status Memory::CheckWritable() const {
  if (!store_->writable()) {
    return absl::FailedPreconditionError(
        absl::StrCat("memory \"", name_, "\" cannot be changed: its store is open for reading only"));
  }
  if (retired_) return absl::FailedPreconditionError(absl::StrCat("memory \"", name_, "\" is closed"));
  return absl::OkStatus();
}

absl::Status Memory::AppendColumns(const MemoryState& state, int64_t row, int64_t n, const int64_t* positions,
                                   const int32_t* token_ids) {
  Segment& tail = *state.tail;
  const int64_t known = std::clamp(tail.ColumnRows() - row, int64_t{0}, n);
  if (known > 0 && positions != nullptr) {
    MNEME_ASSIGN_OR_RETURN(const auto columns, tail.Columns(row + known));
    for (int64_t i = 0; i < known; ++i) {
      if (positions[i] != columns->Position(row + i)) {
        return absl::InvalidArgumentError(absl::StrCat("positions[", i, "]: expected ", columns->Position(row + i),
                                                       ", which another layer gave for the same token, got ",
                                                       positions[i]));
      }
    }
  }
  if (known == n) return absl::OkStatus();
  new_positions_.clear();
  new_ids_.clear();
  bool unusual = false;
  for (int64_t i = known; i < n; ++i) {
    const int64_t token = state.tail_first + row + i;
    new_positions_.push_back(positions != nullptr ? positions[i] : token);
    new_ids_.push_back(token_ids != nullptr ? token_ids[i] : -1);
    unusual |= new_positions_.back() != token;
  }
  MNEME_RETURN_IF_ERROR(tail.AppendColumns(new_positions_.data(), new_ids_.data(), n - known));
  if (unusual && !state.has_positions) {
    UpdateState([](MemoryState& next) { next.has_positions = true; });
  }
  return absl::OkStatus();
}

absl::Status Memory::Append(int32_t layer, const RowTensor& keys, const RowTensor& values, const int64_t* positions,
                            const int32_t* token_ids) {
  const int place = card_.FindLayer(layer);
  if (place < 0) {
    return absl::InvalidArgumentError(absl::StrCat("layer: expected one of the card's, got ", layer));
  }
  const LayerCard& shape = card_.layers[static_cast<size_t>(place)];
  MNEME_RETURN_IF_ERROR(CheckShape("keys", keys, keys.rows, shape.kv_heads, shape.key_dim));
  MNEME_RETURN_IF_ERROR(CheckShape("values", values, keys.rows, shape.kv_heads, shape.value_dim));
  if (!mutator_.TryLock()) return BusyError(name_);
  struct Unlock {
    Mutex* mutex;
    ~Unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex->Unlock(); }
  } unlock{&mutator_};
  MNEME_RETURN_IF_ERROR(CheckWritable());
  if (keys.rows == 0) return absl::OkStatus();

  const DType stored = options_.stored_dtype;
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t row = now->tail->LayerRows(static_cast<size_t>(place));
  std::vector<float>& scratch = row_buffer_;
  MNEME_RETURN_IF_ERROR(
      now->tail->FillRows(static_cast<size_t>(place), keys.rows,
                          [&](RowKind kind, int32_t head, int64_t first, int64_t n, char* out) -> absl::Status {
                            const bool of_keys = kind == RowKind::kKeys;
                            const RowTensor& tensor = of_keys ? keys : values;
                            const bool normalise = of_keys && options_.normalise_keys;
                            if (EncodeRows(tensor, head, first, n, stored, normalise, scratch, out))
                              return absl::OkStatus();
                            return RefusedRow(of_keys ? "keys" : "values", tensor, head, first, n, stored);
                          }));
  MNEME_RETURN_IF_ERROR(AppendColumns(*now, row, keys.rows, positions, token_ids));
  now->tail->PublishRows(static_cast<size_t>(place), keys.rows);
  EvictBeyondBound();
  if (mirror_ != nullptr) mirror_->CopyNewRows(TakeSnapshot(), static_cast<size_t>(place));
  return absl::OkStatus();
}

void Memory::EvictBeyondBound() {
  if (options_.max_tokens == 0) return;
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t end = now->WholeEnd();
  if (now->HeldBelow(end) <= options_.max_tokens) return;
  const int64_t first_kept = end - (options_.max_tokens - std::min(options_.pinned_tokens, end));
  UpdateState([&](MemoryState& next) { next.first_kept = first_kept; });
}

Snapshot Memory::TakeSnapshot(std::pmr::memory_resource* memory) const {
  Snapshot snapshot{nullptr, std::pmr::vector<int64_t>(card_.layers.size(), memory)};
  // Both under the lock: rows whose positions are the first unusual ones are published after the state that says so.
  MutexLock lock(&state_mutex_);
  snapshot.state = state_;
  for (size_t layer = 0; layer < snapshot.layer_ends.size(); ++layer) {
    snapshot.layer_ends[layer] = snapshot.state->LayerEnd(layer);
  }
  return snapshot;
}

int64_t Memory::OwnBytes() const {
  // The card is there twice: by itself and in the manifest.
  return static_cast<int64_t>(sizeof(*this) + 2 * CardBytes(card_) + seed_cache_.MemoryBytes());
}

MemoryInfo Memory::Info() const {
  const std::shared_ptr<const MemoryState> now = state();
  MemoryInfo info;
  info.next_token = now->WholeEnd();
  info.tokens = now->HeldBelow(info.next_token);
  info.first_kept = now->first_kept;
  info.segments = static_cast<int64_t>(now->sealed.size());
  info.tail_tokens = now->tail->WholeRows();
  info.indexes = static_cast<int64_t>(now->runs.size());
  info.bytes = info.tokens * TokenBytes(card_, options_.stored_dtype);
  info.ram_bytes = OwnBytes() + static_cast<int64_t>(now->tail->MemoryBytes());
  for (const SegmentView& view : now->sealed) info.ram_bytes += static_cast<int64_t>(view.segment->MemoryBytes());
  for (const auto& run : now->runs) info.ram_bytes += static_cast<int64_t>(run->MemoryBytes());
  info.tokens_durable = tokens_durable_;
  return info;
}

absl::Status Memory::Read(const ReadRequest& request) const {
  const int place = card_.FindLayer(request.layer);
  if (place < 0) {
    return absl::InvalidArgumentError(absl::StrCat("layer: expected one of the card's, got ", request.layer));
  }
  const auto layer = static_cast<size_t>(place);
  const LayerCard& shape = card_.layers[layer];
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t layer_end = now->LayerEnd(layer);
  const int64_t end = request.begin + request.tokens;
  if (request.begin < 0 || request.tokens < 0 || end > layer_end) {
    return absl::OutOfRangeError(absl::StrCat("begin, tokens: expected a range within [0, ", layer_end, "), got [",
                                              request.begin, ", ", end, ")"));
  }
  std::vector<float> scratch(static_cast<size_t>(std::max(shape.key_dim, shape.value_dim)));
  for (int64_t token = request.begin; token < end;) {
    if (token >= now->pinned_tokens && token < now->first_kept) {
      return absl::OutOfRangeError(absl::StrCat("begin, tokens: token ", token, " is evicted; tokens ", now->first_kept,
                                                " to ", layer_end, " are held"));
    }
    // The piece of one owner that starts at `token`.
    std::shared_ptr<Segment> owner = now->tail;
    int64_t owner_first = now->tail_first;
    int64_t owner_end = layer_end;
    for (const SegmentView& view : now->sealed) {
      if (token >= view.first_token && token < view.end()) {
        owner = view.segment;
        owner_first = view.first_token;
        owner_end = view.end();
      }
    }
    const int64_t stop = std::min(end, owner_end);
    const int64_t rows = stop - owner_first;
    MNEME_ASSIGN_OR_RETURN(const auto keys, owner->Keys(layer, rows));
    MNEME_ASSIGN_OR_RETURN(const auto values, owner->Values(layer, rows));
    MNEME_ASSIGN_OR_RETURN(const auto columns, owner->Columns(std::min(rows, owner->ColumnRows())));
    for (; token < stop; ++token) {
      const int64_t row = token - owner_first;
      const int64_t out = token - request.begin;
      for (int64_t head = 0; head < shape.kv_heads; ++head) {
        if (request.keys.data != nullptr) {
          keys->heads[static_cast<size_t>(head)]->Decode(row, scratch.data());
          std::memcpy(request.keys.Row(out, head), scratch.data(), sizeof(float) * static_cast<size_t>(shape.key_dim));
        }
        if (request.values.data != nullptr) {
          DecodeRow(options_.stored_dtype, values->heads[static_cast<size_t>(head)]->Row(row), scratch.data(),
                    shape.value_dim);
          std::memcpy(request.values.Row(out, head), scratch.data(),
                      sizeof(float) * static_cast<size_t>(shape.value_dim));
        }
      }
      if (request.positions != nullptr) request.positions[out] = columns->Position(row);
      if (request.token_ids != nullptr) request.token_ids[out] = columns->TokenId(row);
    }
  }
  return absl::OkStatus();
}

absl::Status Memory::DecodeKeys(const MemoryState& state, size_t layer, int32_t head, int64_t first, int64_t tokens,
                                float* keys) const {
  const int64_t dim = card_.layers[layer].key_dim;
  // Rows of tokens that are evicted and gone stay zero; nobody asks for them.
  std::fill(keys, keys + tokens * dim, 0.0f);
  for (const SegmentView& view : state.sealed) {
    const int64_t begin = std::max(first, view.first_token);
    const int64_t end = std::min(first + tokens, view.end());
    if (begin >= end) continue;
    MNEME_ASSIGN_OR_RETURN(const auto rows, view.segment->Keys(layer, view.rows));
    for (int64_t token = begin; token < end; ++token) {
      rows->heads[static_cast<size_t>(head)]->Decode(token - view.first_token, keys + (token - first) * dim);
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme
