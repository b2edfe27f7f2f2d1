// SPDX-License-Identifier: Apache-2.0
#include "memory/store.h"

#include <algorithm>
#include <deque>
#include <set>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/device/device.h"

namespace mneme {
namespace {

constexpr size_t kMaxNameBytes = 255;
constexpr int kMaxThreads = 1024;

absl::Status CheckName(absl::string_view field, const std::string& name) {
  if (!name.empty() && name.size() <= kMaxNameBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": expected 1 to ", kMaxNameBytes, " bytes, got ", name.size()));
}

absl::Status CheckOptions(const MemoryOptions& options) {
  const auto expect = [](bool holds, absl::string_view field, absl::string_view expected, int64_t actual) {
    if (holds) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("options.", field, ": expected ", expected, ", got ", actual));
  };
  absl::Status checks[] = {
      expect(options.max_tokens >= 0, "max_tokens", "0 (unbounded) or more", options.max_tokens),
      expect(options.pinned_tokens >= 0, "pinned_tokens", "0 or more", options.pinned_tokens),
      expect(options.max_tokens == 0 || options.max_tokens > options.pinned_tokens, "max_tokens",
             absl::StrCat("more than the ", options.pinned_tokens, " pinned tokens"), options.max_tokens),
      expect(options.segment_tokens >= kChunkRows && options.segment_tokens % kChunkRows == 0, "segment_tokens",
             absl::StrCat("a multiple of ", kChunkRows), options.segment_tokens),
  };
  for (const absl::Status& check : checks) {
    if (!check.ok()) return check;
  }
  return ParseIndexSpec(options.index_spec).status();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::string& path, const StoreOptions& options) {
  if (options.threads < 1 || options.threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.threads: expected 1 to ", kMaxThreads, ", got ", options.threads));
  }
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<Database> database, Database::Open(path, options.database));
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<StoreContext> context, StoreContext::New(std::move(database), options));
  std::unique_ptr<Store> store(new Store(std::move(context)));
  MNEME_RETURN_IF_ERROR(store->CountReferences());
  return store;
}

absl::Status Store::CountReferences() {
  MNEME_ASSIGN_OR_RETURN(const std::vector<std::string> names, database().ListMemories());
  for (const std::string& name : names) {
    const absl::StatusOr<MemoryManifest> manifest = database().ReadManifest(name);
    // What cannot be read for the moment may name segments that others share: uncounted, these would be dropped.
    if (CannotBeRead(manifest.status())) return manifest.status();
    if (!manifest.ok()) {
      Log(absl::StrCat("memory \"", name, "\" cannot be opened: ", manifest.status().message()));
      continue;
    }
    ManifestSwap(&context_->segments(), nullptr, &*manifest).Replaced();
  }
  return absl::OkStatus();
}

absl::Status Store::Close() {
  MutexLock lock(&mutex_);
  if (open_.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("store: expected no open memory, got ", open_.size(), ", such as \"", open_.begin()->first, "\""));
}

Store::OpenMemories::node_type Store::NewEntry(const std::string& name) {
  OpenMemories one;
  one[name].users = 1;
  return one.extract(one.begin());
}

void Store::InsertOpen(OpenMemories::node_type entry, const std::shared_ptr<Memory>& memory) {
  entry.mapped().memory = memory;
  open_.insert(std::move(entry));
}

absl::Status Store::CheckWritable() const {
  if (writable()) return absl::OkStatus();
  return absl::FailedPreconditionError("store: expected one open for writing, got a read-only one");
}

absl::Status Store::CheckNameIsFree(absl::string_view field, const std::string& name) {
  const absl::Status status = database().ReadManifest(name).status();
  if (absl::IsNotFound(status)) return absl::OkStatus();
  if (CannotBeRead(status)) return status;
  return absl::AlreadyExistsError(absl::StrCat(field, ": memory \"", name, "\" exists already"));
}

absl::StatusOr<std::shared_ptr<Memory>> Store::CreateMemory(const std::string& name, const ModelCard& card,
                                                            const MemoryOptions& options) {
  MNEME_RETURN_IF_ERROR(CheckName("name", name));
  if (card.layers.empty()) return absl::InvalidArgumentError("card: expected at least one layer, got none");
  MNEME_RETURN_IF_ERROR(CheckOptions(options));
  MNEME_RETURN_IF_ERROR(CheckWritable());
  MutexLock lock(&mutex_);
  MNEME_RETURN_IF_ERROR(CheckNameIsFree("name", name));
  MemoryManifest manifest;
  manifest.name = name;
  manifest.generation = 1;
  manifest.card = card;
  manifest.options = options;
  const std::unique_ptr<Transaction> transaction = database().Begin();
  MNEME_RETURN_IF_ERROR(transaction->PutManifest(manifest));
  // All that can fail comes before the commit.
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> memory, Memory::Load(context_.get(), manifest));
  OpenMemories::node_type entry = NewEntry(name);
  MNEME_RETURN_IF_ERROR(transaction->Commit(Durability::kBuffered));
  InsertOpen(std::move(entry), memory);
  return memory;
}

absl::StatusOr<std::shared_ptr<Memory>> Store::OpenMemory(const std::string& name, const ModelCard* expected) {
  MNEME_RETURN_IF_ERROR(CheckName("name", name));
  MutexLock lock(&mutex_);
  if (const auto open = open_.find(name); open != open_.end()) {
    OpenEntry& entry = open->second;
    if (expected != nullptr) MNEME_RETURN_IF_ERROR(CheckSameModel(entry.memory->card(), *expected));
    ++entry.users;
    return entry.memory;
  }
  MNEME_RETURN_IF_ERROR(database().CatchUp());
  MNEME_ASSIGN_OR_RETURN(MemoryManifest manifest, database().ReadManifest(name));
  if (expected != nullptr) MNEME_RETURN_IF_ERROR(CheckSameModel(manifest.card, *expected));
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> memory, Memory::Load(context_.get(), manifest));
  InsertOpen(NewEntry(name), memory);
  return memory;
}

absl::StatusOr<std::shared_ptr<Memory>> Store::ForkMemory(const std::shared_ptr<Memory>& memory, int64_t at_token,
                                                          const std::string& new_name) {
  MNEME_RETURN_IF_ERROR(CheckName("new_name", new_name));
  MutexLock lock(&mutex_);
  MNEME_RETURN_IF_ERROR(CheckNameIsFree("new_name", new_name));
  OpenMemories::node_type entry = NewEntry(new_name);
  absl::StatusOr<std::shared_ptr<Memory>> fork = memory->Fork(new_name, at_token);
  context_->segments().FreeDropped(SegmentRegistry::Urgency::kWhenWorthwhile);
  if (fork.ok()) InsertOpen(std::move(entry), *fork);
  return fork;
}

absl::StatusOr<std::shared_ptr<Memory>> Store::ImportMemory(MemoryImport& import, const std::string& name,
                                                            const ModelCard* expected, const Progress& progress) {
  const MemoryContents& contents = import.contents();
  MNEME_RETURN_IF_ERROR(CheckName("name", name));
  MNEME_RETURN_IF_ERROR(CheckOptions(contents.options));
  MNEME_RETURN_IF_ERROR(CheckWritable());
  if (expected != nullptr) MNEME_RETURN_IF_ERROR(CheckSameModel(contents.card, *expected));
  MNEME_RETURN_IF_ERROR(CheckNameIsFree("name", name));
  MNEME_RETURN_IF_ERROR(context_->CheckDiskBudget(import.bytes()));
  MNEME_RETURN_IF_ERROR(import.Write(progress));

  MutexLock lock(&mutex_);
  MNEME_RETURN_IF_ERROR(CheckNameIsFree("name", name));  // again: another call may have made one meanwhile
  const MemoryManifest manifest = import.ManifestOf(name);
  MNEME_RETURN_IF_ERROR(import.transaction().PutManifest(manifest));
  // All that can fail comes before the commit.
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> memory, Memory::Load(context_.get(), manifest));
  OpenMemories::node_type entry = NewEntry(name);
  ManifestSwap swap(&context_->segments(), nullptr, &manifest);
  MNEME_RETURN_IF_ERROR(import.transaction().Commit(Durability::kSynced));
  swap.Replaced();
  import.Committed();
  InsertOpen(std::move(entry), memory);
  return memory;
}

absl::Status Store::CloseMemory(const std::shared_ptr<Memory>& memory) {
  {
    MutexLock lock(&mutex_);
    const auto open = open_.find(memory->name());
    if (open == open_.end() || open->second.memory != memory) {
      return absl::FailedPreconditionError(absl::StrCat("memory \"", memory->name(), "\" is not open"));
    }
    if (open->second.users == 1) {
      MNEME_RETURN_IF_ERROR(memory->Retire());
      open_.erase(open);
    } else {
      --open->second.users;
    }
  }
  context_->segments().FreeDropped(SegmentRegistry::Urgency::kWhenWorthwhile);
  return absl::OkStatus();
}

absl::Status Store::DropMemory(const std::string& name) {
  return DropNamed("name", {name});
}

absl::Status Store::DropMemories(const std::vector<std::string>& names) {
  return DropNamed("names", names);
}

absl::Status Store::Compact() {
  MNEME_RETURN_IF_ERROR(CheckWritable());
  context_->segments().FreeDropped(SegmentRegistry::Urgency::kNow);
  return database().RewriteFiles();
}

absl::StatusOr<BackupInfo> Store::Backup(const std::string& folder, int64_t keep, const Progress& progress) {
  MNEME_RETURN_IF_ERROR(CheckWritable());
  context_->segments().FreeDropped(SegmentRegistry::Urgency::kNow);
  return database().Backup(folder, keep, progress);
}

absl::Status Store::DropNamed(absl::string_view field, const std::vector<std::string>& names) {
  for (const std::string& name : names) MNEME_RETURN_IF_ERROR(CheckName(field, name));
  MNEME_RETURN_IF_ERROR(CheckWritable());
  {
    MutexLock lock(&mutex_);
    const std::unique_ptr<Transaction> transaction = database().Begin();
    MNEME_ASSIGN_OR_RETURN(const std::vector<MemoryManifest> manifests, DeleteManifests(field, names, *transaction));
    std::deque<ManifestSwap> swaps;
    for (const MemoryManifest& manifest : manifests) swaps.emplace_back(&context_->segments(), &manifest, nullptr);
    MNEME_RETURN_IF_ERROR(transaction->Commit(Durability::kBuffered));
    for (ManifestSwap& swap : swaps) swap.Replaced();
  }
  context_->segments().FreeDropped(SegmentRegistry::Urgency::kWhenWorthwhile);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MemoryManifest>> Store::DeleteManifests(absl::string_view field,
                                                                   const std::vector<std::string>& names,
                                                                   Transaction& transaction) {
  std::vector<MemoryManifest> manifests;
  std::set<std::string> seen;
  for (const std::string& name : names) {
    if (!seen.insert(name).second) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": memory \"", name, "\" is named twice"));
    }
    if (open_.contains(name)) {
      return absl::FailedPreconditionError(absl::StrCat(field, ": memory \"", name, "\" is open; close it first"));
    }
    absl::StatusOr<MemoryManifest> manifest = database().ReadManifest(name);
    // A memory with a damaged manifest can be dropped; its rows are deleted when the store is opened next.
    if (!manifest.ok() && !absl::IsDataLoss(manifest.status())) return manifest.status();
    MNEME_RETURN_IF_ERROR(transaction.DeleteManifest(name));
    if (manifest.ok()) manifests.push_back(*std::move(manifest));
  }
  return manifests;
}

absl::Status Store::List(const std::function<bool(const std::string&, const MemoryManifest&)>& visit) {
  MNEME_RETURN_IF_ERROR(database().CatchUp());
  MNEME_ASSIGN_OR_RETURN(const std::vector<std::string> names, database().ListMemories());
  for (const std::string& name : names) {
    const absl::StatusOr<MemoryManifest> manifest = database().ReadManifest(name);
    if (!manifest.ok()) {
      if (!absl::IsNotFound(manifest.status())) Log(manifest.status().message());
      continue;
    }
    if (!visit(name, *manifest)) break;
  }
  return absl::OkStatus();
}

absl::StatusOr<StoreStats> Store::Stats() {
  StoreStats stats;
  MNEME_ASSIGN_OR_RETURN(stats.database, database().Stats());
  const IndexCounters& indexes = context_->index_counters();
  stats.indexes_built = indexes.built;
  stats.indexes_loaded = indexes.loaded;
  stats.indexes_rebuilt = indexes.rebuilt;
  const ScanCounters& scans = context_->scan_counters();
  stats.scanned = {
      .by_code = scans.by_code, .reranked = scans.reranked, .by_key = scans.by_key, .rescanned = scans.rescanned};
  const SegmentContext& segment_context = *context_->segments().context();
  stats.codes_loaded = segment_context.codes_loaded;
  stats.codes_rebuilt = segment_context.codes_rebuilt;
  stats.rows_read = segment_context.rows_read;
  if (device() != nullptr) {
    stats.device_bytes = device()->bytes_used();
    stats.device_searched_sequences = device()->counters().attended;
    stats.device_fallback_sequences = device()->counters().fell_back;
    stats.device_copied_rows = device()->counters().copied_rows;
    stats.host_staged_calls = device()->counters().staged;
  }
  std::vector<std::shared_ptr<Memory>> open;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, entry] : open_) open.push_back(entry.memory);
  }
  stats.open_memories = static_cast<int64_t>(open.size());
  // A sealed segment is counted once, however many memories share it.
  std::unordered_map<const Segment*, int64_t> segment_bytes;
  for (const auto& memory : open) {
    const std::shared_ptr<const MemoryState> state = memory->TakeSnapshot().state;
    stats.ram_bytes += memory->OwnBytes() + static_cast<int64_t>(state->tail->RamBytes());
    for (const SegmentView& view : state->sealed) {
      segment_bytes[view.segment.get()] = static_cast<int64_t>(view.segment->RamBytes());
    }
    for (const auto& run : state->runs) stats.ram_bytes += static_cast<int64_t>(run->RamBytes());
  }
  for (const auto& [segment, bytes] : segment_bytes) stats.ram_bytes += bytes;
  return stats;
}

}  // namespace mneme
