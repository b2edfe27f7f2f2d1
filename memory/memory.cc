// SPDX-License-Identifier: Apache-2.0
#include "memory/memory.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/arenas.h"
#include "base/out_of_memory.h"
#include "base/status.h"
#include "memory/device/device.h"
#include "memory/device/mirror.h"

namespace mneme {
namespace {

size_t CardBytes(const ModelCard& card) {
  size_t bytes = AllocatedBytes(card.layers.capacity() * sizeof(LayerCard));
  for (const LayerCard& layer : card.layers) {
    const size_t frequencies = layer.rotary.inverse_frequencies.capacity() * sizeof(float);
    if (frequencies > 0) bytes += AllocatedBytes(frequencies);
  }
  return bytes;
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

Memory::Memory(StoreContext* store, const MemoryManifest& manifest, IndexSpec spec)
    : seed_cache_(manifest.card.layers.size()),
      store_(store),
      name_(manifest.name),
      card_(manifest.card),
      options_(manifest.options),
      spec_(std::move(spec)),
      manifest_(manifest),
      tokens_durable_(TokensOf(manifest)) {}

Memory::~Memory() = default;

absl::StatusOr<std::shared_ptr<Memory>> Memory::Load(StoreContext* store, const MemoryManifest& manifest) {
  MNEME_ASSIGN_OR_RETURN(IndexSpec spec, ParseIndexSpec(manifest.options.index_spec));
  std::shared_ptr<Memory> memory(new Memory(store, manifest, std::move(spec)));
  auto state = std::make_shared<MemoryState>();
  state->pinned_tokens = manifest.options.pinned_tokens;
  state->first_kept = manifest.first_kept;
  state->has_positions = manifest.has_positions;
  MNEME_RETURN_IF_ERROR(memory->AddSegments(manifest, *state));
  memory->AddRuns(manifest, *state);
  for (const AttachmentRef& ref : manifest.attachments) state->attachments.push_back({ref, nullptr});
  memory->MakeMirror();
  memory->SetState(std::move(state));
  return memory;
}

absl::Status Memory::AddSegments(const MemoryManifest& manifest, MemoryState& state) {
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
      state.sealed.push_back(
          {store_->segments().FindOrMake(ref.id, card_, options_.stored_dtype, ref.rows), ref.first_token, ref.rows});
      continue;
    }
    state.tail = std::make_shared<Segment>(ref.id, card_, options_.stored_dtype, &store_->database(),
                                           store_->segments().context(), ref.rows, ref.chunked_rows);
    state.tail_first = ref.first_token;
    MutexLock lock(&mutator_);
    tail_on_disk_ = {.rows = ref.rows, .chunked = ref.chunked_rows};
  }
  if (state.tail == nullptr) {
    state.tail = NewTail();
    // If everything is evicted, only first_kept says where the next token stands.
    state.tail_first = std::max(end, manifest.first_kept);
  }
  store_->segments().Add(state.tail);
  return absl::OkStatus();
}

void Memory::AddRuns(const MemoryManifest& manifest, MemoryState& state) {
  for (const IndexRef& ref : manifest.indexes) {
    absl::StatusOr<IndexSpec> spec = ParseIndexSpec(ref.spec);
    if (!spec.ok()) continue;  // of another build of mneme; its rows are scanned until they are indexed anew
    state.runs.push_back(NewRun(ref.id, ref.first_token, ref.tokens, *std::move(spec)));
  }
}

std::shared_ptr<IndexRun> Memory::NewRun(IndexId id, int64_t first_token, int64_t tokens, IndexSpec spec) const {
  return std::make_shared<IndexRun>(
      id, first_token, tokens, std::move(spec), card_, &store_->database(), &store_->index_counters(),
      IndexRun::Options{.trust_blobs = !store_->options().ignore_index_blobs,
                        .write_blobs = store_->writable(),
                        .log = [store = store_](absl::string_view text) { store->Log(text); }});
}

void Memory::MakeMirror() {
  // A host that wants an index wants what the index finds, not the device's exact search.
  if (store_->device() == nullptr || WantsIndexes()) return;
  absl::StatusOr<std::unique_ptr<MemoryMirror>> mirror =
      MemoryMirror::New(store_->device(), card_, options_.stored_dtype, options_.pinned_tokens);
  if (!mirror.ok()) return store_->device()->LogFailure(mirror.status());
  mirror_ = *std::move(mirror);
}

std::shared_ptr<Segment> Memory::NewTail() const {
  const SegmentId id = store_->writable() ? store_->database().NewSegmentId() : 0;
  return std::make_shared<Segment>(id, card_, options_.stored_dtype, &store_->database(), store_->segments().context(),
                                   0, 0);
}

absl::Status Memory::CheckWritable() const {
  if (!store_->writable()) {
    return absl::FailedPreconditionError(
        absl::StrCat("memory \"", name_, "\" cannot be changed: its store is open for reading only"));
  }
  if (retired_) return absl::FailedPreconditionError(absl::StrCat("memory \"", name_, "\" is closed"));
  return absl::OkStatus();
}

void Memory::Try(absl::string_view doing, absl::FunctionRef<absl::Status()> work) const noexcept {
  const absl::Status status = CatchExceptions("work after a commit", work);
  if (status.ok()) return;
  CatchExceptions("log", [&] {
    store_->Log(absl::StrCat("memory \"", name_, "\": ", doing, ": ", status.message()));
    return absl::OkStatus();
  }).IgnoreError();
}

absl::Status Memory::Retire() {
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MutexLock commit_lock(&commit_mutex_);
  retired_ = true;
  return absl::OkStatus();
}

Snapshot Memory::TakeSnapshot(std::pmr::memory_resource* resource) const {
  Snapshot snapshot{nullptr, std::pmr::vector<int64_t>(card_.layers.size(), resource)};
  // Both under the lock: ShowRows publishes rows with the first unusual positions under it, with the state that says
  // so.
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
  info.ram_bytes = OwnBytes() + static_cast<int64_t>(now->tail->RamBytes());
  for (const SegmentView& view : now->sealed) info.ram_bytes += static_cast<int64_t>(view.segment->RamBytes());
  for (const auto& run : now->runs) info.ram_bytes += static_cast<int64_t>(run->RamBytes());
  for (const Attachment& attachment : now->attachments) {
    info.attachment_bytes += static_cast<int64_t>(attachment.ref.bytes);
    if (attachment.bytes != nullptr) info.ram_bytes += static_cast<int64_t>(attachment.ref.bytes);
  }
  info.tokens_durable = tokens_durable_;
  return info;
}

}  // namespace mneme
