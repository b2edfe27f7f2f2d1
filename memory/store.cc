// SPDX-License-Identifier: Apache-2.0
#include "memory/store.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

#include "base/floating_point.h"
#include "base/status.h"
#include "memory/device/device.h"
#include "memory/memory.h"
#include "memory/segment/code_columns.h"
#include "memory/segment/segment_writer.h"

namespace mneme {
namespace {

constexpr size_t kMaxNameBytes = 255;
constexpr int kMaxThreads = 1024;

// Dropped chunks are freed when they have become so many, or so large: see Store::CollectDropped.
constexpr int64_t kManyDroppedSegments = 1024;
constexpr int64_t kManyDroppedBytes = int64_t{64} << 20;

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

Store::Store(std::unique_ptr<Database> database, const StoreOptions& options)
    : options_(options),
      database_(std::move(database)),
      segment_context_(
          std::make_shared<SegmentContext>(options.ram_budget_bytes, options.row_read_cost, options.database.log)) {
  if (options_.executor == nullptr) {
    own_executor_ = MakeThreadPool(static_cast<size_t>(options_.threads));
    executor_ = own_executor_.get();
  } else {
    executor_ = options_.executor;
  }
}

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::string& path, const StoreOptions& options) {
  if (options.threads < 1 || options.threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.threads: expected 1 to ", kMaxThreads, ", got ", options.threads));
  }
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<Database> database, Database::Open(path, options.database));
  std::unique_ptr<Store> store(new Store(std::move(database), options));
  MNEME_RETURN_IF_ERROR(store->OpenDevice());
  MNEME_RETURN_IF_ERROR(store->CountReferences());
  if (options.background && store->writable()) {
    store->background_ = std::thread([raw = store.get()] { raw->Background(); });
  }
  return store;
}

absl::Status Store::OpenDevice() {
  if (options_.device_budget_bytes <= 0) return absl::OkStatus();
  absl::StatusOr<std::shared_ptr<Device>> device =
      Device::Open(options_.device_ordinal, options_.device_budget_bytes, options_.database.log);
  if (device.ok()) {
    device_ = *std::move(device);
    return absl::OkStatus();
  }
  if (!absl::IsFailedPrecondition(device.status())) return device.status();
  Log(absl::StrCat("device_budget_bytes: ", device.status().message(), "; memories stay with the CPU"));
  return absl::OkStatus();
}

absl::Status Store::CountReferences() {
  MNEME_ASSIGN_OR_RETURN(const std::vector<std::string> names, database_->ListMemories());
  for (const std::string& name : names) {
    const absl::StatusOr<MemoryManifest> manifest = database_->ReadManifest(name);
    if (!manifest.ok()) {
      Log(absl::StrCat("memory \"", name, "\" cannot be opened: ", manifest.status().message()));
      continue;
    }
    ManifestReplaced(nullptr, &*manifest);
  }
  return absl::OkStatus();
}

Store::~Store() {
  {
    MutexLock lock(&background_mutex_);
    stopping_ = true;
  }
  background_due_.NotifyAll();
  if (background_.joinable()) background_.join();
  if (writable()) CollectDropped(/*all=*/true);
}

absl::Status Store::Close() {
  MutexLock lock(&mutex_);
  if (!open_.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("store: expected no open memory, got ", open_.size(), ", such as \"", open_.begin()->first, "\""));
  }
  return absl::OkStatus();
}

void Store::Log(absl::string_view message) const {
  if (options_.database.log) options_.database.log(message);
}

std::shared_ptr<Memory> Store::FindOpen(const std::string& name, bool count) {
  const auto entry = open_.find(name);
  if (entry == open_.end()) return nullptr;
  if (count) ++entry->second.count;
  return entry->second.memory;
}

absl::StatusOr<std::shared_ptr<Memory>> Store::CreateMemory(const std::string& name, const ModelCard& card,
                                                            const MemoryOptions& options) {
  MNEME_RETURN_IF_ERROR(CheckName("name", name));
  if (card.layers.empty()) return absl::InvalidArgumentError("card: expected at least one layer, got none");
  MNEME_RETURN_IF_ERROR(CheckOptions(options));
  if (!writable()) return absl::FailedPreconditionError("store: expected one open for writing, got a read-only one");
  MutexLock lock(&mutex_);
  if (database_->ReadManifest(name).status().code() != absl::StatusCode::kNotFound) {
    return absl::AlreadyExistsError(absl::StrCat("name: memory \"", name, "\" exists already"));
  }
  MemoryManifest manifest;
  manifest.name = name;
  manifest.generation = 1;
  manifest.card = card;
  manifest.options = options;
  const std::unique_ptr<Transaction> transaction = database_->Begin();
  MNEME_RETURN_IF_ERROR(transaction->PutManifest(manifest));
  MNEME_RETURN_IF_ERROR(transaction->Commit(Durability::kBuffered));
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> memory, Memory::Load(this, std::move(manifest)));
  open_[name] = {memory, 1};
  return memory;
}

absl::StatusOr<std::shared_ptr<Memory>> Store::OpenMemory(const std::string& name, const ModelCard* expected) {
  MNEME_RETURN_IF_ERROR(CheckName("name", name));
  MutexLock lock(&mutex_);
  if (const std::shared_ptr<Memory> memory = FindOpen(name, false)) {
    if (expected != nullptr) MNEME_RETURN_IF_ERROR(CheckSameModel(memory->card(), *expected));
    return FindOpen(name, true);
  }
  MNEME_RETURN_IF_ERROR(database_->CatchUp());
  MNEME_ASSIGN_OR_RETURN(MemoryManifest manifest, database_->ReadManifest(name));
  if (expected != nullptr) MNEME_RETURN_IF_ERROR(CheckSameModel(manifest.card, *expected));
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> memory, Memory::Load(this, std::move(manifest)));
  open_[name] = {memory, 1};
  return memory;
}

absl::StatusOr<std::shared_ptr<Memory>> Store::ForkMemory(const std::shared_ptr<Memory>& memory, int64_t at_token,
                                                          const std::string& new_name) {
  MNEME_RETURN_IF_ERROR(CheckName("new_name", new_name));
  MutexLock lock(&mutex_);
  if (database_->ReadManifest(new_name).status().code() != absl::StatusCode::kNotFound) {
    return absl::AlreadyExistsError(absl::StrCat("new_name: memory \"", new_name, "\" exists already"));
  }
  const absl::Status status = memory->ForkTo(new_name, at_token);
  CollectDropped();
  MNEME_RETURN_IF_ERROR(status);
  MNEME_ASSIGN_OR_RETURN(MemoryManifest manifest, database_->ReadManifest(new_name));
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> fork, Memory::Load(this, std::move(manifest)));
  open_[new_name] = {fork, 1};
  return fork;
}

absl::Status Store::CloseMemory(const std::shared_ptr<Memory>& memory) {
  {
    MutexLock lock(&mutex_);
    const auto entry = open_.find(memory->name());
    if (entry == open_.end() || entry->second.memory != memory) {
      return absl::FailedPreconditionError(absl::StrCat("memory \"", memory->name(), "\" is not open"));
    }
    if (entry->second.count == 1) {
      MNEME_RETURN_IF_ERROR(memory->Retire());
      open_.erase(entry);
    } else {
      --entry->second.count;
    }
  }
  CollectDropped();
  return absl::OkStatus();
}

absl::Status Store::DropMemory(const std::string& name) {
  return DropNamed("name", {name});
}

absl::Status Store::DropMemories(const std::vector<std::string>& names) {
  return DropNamed("names", names);
}

absl::Status Store::DropNamed(absl::string_view field, const std::vector<std::string>& names) {
  for (const std::string& name : names) MNEME_RETURN_IF_ERROR(CheckName(field, name));
  if (!writable()) return absl::FailedPreconditionError("store: expected one open for writing, got a read-only one");
  {
    MutexLock lock(&mutex_);
    std::vector<MemoryManifest> manifests;
    absl::flat_hash_set<std::string> seen;
    const std::unique_ptr<Transaction> transaction = database_->Begin();
    for (const std::string& name : names) {
      if (!seen.insert(name).second) {
        return absl::InvalidArgumentError(absl::StrCat(field, ": memory \"", name, "\" is named twice"));
      }
      if (open_.contains(name)) {
        return absl::FailedPreconditionError(absl::StrCat(field, ": memory \"", name, "\" is open; close it first"));
      }
      absl::StatusOr<MemoryManifest> manifest = database_->ReadManifest(name);
      // A damaged manifest can be dropped; its rows are collected when the store is opened next.
      if (!manifest.ok() && manifest.status().code() != absl::StatusCode::kDataLoss) return manifest.status();
      MNEME_RETURN_IF_ERROR(transaction->DeleteManifest(name));
      if (manifest.ok()) manifests.push_back(*std::move(manifest));
    }
    MNEME_RETURN_IF_ERROR(transaction->Commit(Durability::kBuffered));
    for (const MemoryManifest& manifest : manifests) ManifestReplaced(&manifest, nullptr);
  }
  CollectDropped();
  return absl::OkStatus();
}

absl::Status Store::List(const std::function<bool(const std::string&, const MemoryManifest&)>& visit) {
  MNEME_RETURN_IF_ERROR(database_->CatchUp());
  MNEME_ASSIGN_OR_RETURN(const std::vector<std::string> names, database_->ListMemories());
  for (const std::string& name : names) {
    const absl::StatusOr<MemoryManifest> manifest = database_->ReadManifest(name);
    if (!manifest.ok()) {
      if (manifest.status().code() != absl::StatusCode::kNotFound) Log(manifest.status().message());
      continue;
    }
    if (!visit(name, *manifest)) break;
  }
  return absl::OkStatus();
}

namespace {

// Whether this process lacks the right or the means to read, which says nothing about what is stored.
bool CannotBeRead(const absl::Status& status) {
  return absl::IsPermissionDenied(status) || absl::IsResourceExhausted(status);
}

}  // namespace

absl::Status Store::VerifyOne(const MemoryManifest& manifest, const Progress& progress, VerifyReport* report,
                              std::vector<std::string>* messages) {
  uint64_t read = 0;
  MNEME_RETURN_IF_ERROR(database_->VerifyMemory(
      manifest,
      [&](uint64_t done, uint64_t total) {
        read = done;
        return !progress || progress(static_cast<int64_t>(done), static_cast<int64_t>(total));
      },
      [&](const absl::Status& status) {
        ++report->damaged_values;
        messages->push_back(absl::StrCat("memory \"", manifest.name, "\": ", status.message()));
      }));
  report->bytes_read = static_cast<int64_t>(read);
  if (report->damaged_values > 0) report->damaged_memories = 1;
  for (const SegmentRef& ref : manifest.segments) {
    if (!ref.sealed || !IsCoded(ref.rows)) continue;
    for (const LayerCard& layer : manifest.card.layers) {
      for (int32_t head = 0; head < layer.kv_heads; ++head) {
        KeyCodes codes(layer.key_dim);
        const absl::Status status = ReadCodes(*database_, ref.id, layer.layer, head, ref.rows, codes);
        if (status.ok()) report->bytes_read += HeadCodeBytes(codes, ref.rows);
        if (CannotBeRead(status)) return status;
        if (!absl::IsDataLoss(status)) continue;
        messages->push_back(absl::StrCat("memory \"", manifest.name, "\": ", status.message()));
        ++report->damaged_indexes;
      }
    }
  }
  for (const IndexRef& ref : manifest.indexes) {
    const absl::StatusOr<IndexSpec> spec = ParseIndexSpec(ref.spec);
    if (!spec.ok()) continue;
    for (const LayerCard& layer : manifest.card.layers) {
      for (int32_t head = 0; head < layer.kv_heads; ++head) {
        const absl::StatusOr<std::string> blob = database_->GetIndexBlob(ref.id, layer.layer, head);
        const absl::Status status = !blob.ok() ? blob.status()
                                    : options_.ignore_index_blobs
                                        ? absl::OkStatus()
                                        : LoadKeyIndex(*spec, *blob, ref.tokens, layer.key_dim).status();
        if (status.ok()) continue;
        if (CannotBeRead(blob.status())) return status;
        const std::string where = absl::StrCat("index ", ref.id, " layer ", layer.layer, " head ", head, ": ");
        // What storage says of a blob names it already.
        messages->push_back(absl::StrCat("memory \"", manifest.name, "\": ", blob.ok() ? where : "", status.message()));
        ++report->damaged_indexes;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Store::Verify(const Progress& progress, VerifyReport* report) {
  // A commit meanwhile may have moved what was looked for: only damage that stays is damage.
  constexpr int kMostAttempts = 10;
  MNEME_RETURN_IF_ERROR(database_->CatchUp());
  MNEME_ASSIGN_OR_RETURN(const std::vector<std::string> names, database_->ListMemories());
  // Each memory has its share of the progress as it is now, however it changes and however often it is read.
  std::vector<int64_t> shares;
  int64_t total = 0;
  for (const std::string& name : names) {
    const absl::StatusOr<MemoryManifest> manifest = database_->ReadManifest(name);
    shares.push_back(manifest.ok() ? static_cast<int64_t>(StoredBytes(*manifest)) : 0);
    total += shares.back();
  }
  int64_t before = 0, told = 0;
  for (size_t i = 0; i < names.size(); before += shares[i++]) {
    const std::string& name = names[i];
    const auto of_all = [&](int64_t done, int64_t bytes) {
      const double part = static_cast<double>(done) / static_cast<double>(std::max<int64_t>(1, bytes));
      told = std::max(told, before + static_cast<int64_t>(part * static_cast<double>(shares[i])));
      return !progress || progress(told, total);
    };
    VerifyReport found;
    std::vector<std::string> messages;
    for (int attempt = 1; attempt <= kMostAttempts; ++attempt) {
      found = {};
      messages.clear();
      const absl::StatusOr<MemoryManifest> manifest = database_->ReadManifest(name);
      if (manifest.status().code() == absl::StatusCode::kNotFound) break;
      found.memories = 1;
      if (!manifest.ok()) {
        found.damaged_memories = 1;
        messages.emplace_back(manifest.status().message());
        break;
      }
      MNEME_RETURN_IF_ERROR(VerifyOne(*manifest, of_all, &found, &messages));
      if (messages.empty()) break;
      const absl::StatusOr<MemoryManifest> now = database_->ReadManifest(name);
      if (now.ok() && now->generation == manifest->generation) break;
    }
    for (const std::string& message : messages) Log(message);
    report->memories += found.memories;
    report->damaged_memories += found.damaged_memories;
    report->damaged_values += found.damaged_values;
    report->damaged_indexes += found.damaged_indexes;
    report->bytes_read += found.bytes_read;
  }
  // A bad block that no row of a memory needs is damage all the same.
  const absl::Status tables = database_->VerifyTables();
  if (!absl::IsDataLoss(tables)) return tables;
  Log(tables.message());
  if (report->damaged_memories + report->damaged_values + report->damaged_indexes == 0) report->damaged_values = 1;
  return absl::OkStatus();
}

absl::StatusOr<StoreStats> Store::Stats() {
  StoreStats stats;
  MNEME_ASSIGN_OR_RETURN(stats.database, database_->Stats());
  stats.indexes_built = index_counters_.built;
  stats.indexes_loaded = index_counters_.loaded;
  stats.indexes_rebuilt = index_counters_.rebuilt;
  stats.scanned = {scan_counters_.by_code, scan_counters_.looked_at, scan_counters_.by_key, scan_counters_.repeated};
  stats.codes_loaded = segment_context_->codes_loaded;
  stats.codes_rebuilt = segment_context_->codes_rebuilt;
  stats.rows_read = segment_context_->rows_read;
  if (device_ != nullptr) {
    stats.device_bytes = device_->bytes_used();
    stats.device_searched_sequences = device_->counters().attended;
    stats.device_fallback_sequences = device_->counters().fell_back;
    stats.device_copied_rows = device_->counters().copied_rows;
    stats.host_staged_calls = device_->counters().staged;
  }
  std::vector<std::shared_ptr<Memory>> open;
  {
    MutexLock lock(&mutex_);
    for (const auto& [name, entry] : open_) open.push_back(entry.memory);
  }
  stats.open_memories = static_cast<int64_t>(open.size());
  // Sealed segments are counted once, however many memories share them.
  absl::flat_hash_map<const Segment*, int64_t> segments;
  for (const auto& memory : open) {
    const std::shared_ptr<const MemoryState> state = memory->TakeSnapshot().state;
    stats.ram_bytes += memory->OwnBytes() + static_cast<int64_t>(state->tail->MemoryBytes());
    for (const SegmentView& view : state->sealed) {
      segments[view.segment.get()] = static_cast<int64_t>(view.segment->MemoryBytes());
    }
    for (const auto& run : state->runs) stats.ram_bytes += static_cast<int64_t>(run->MemoryBytes());
  }
  for (const auto& [segment, bytes] : segments) stats.ram_bytes += bytes;
  return stats;
}

std::shared_ptr<Segment> Store::SharedSegment(SegmentId id, const ModelCard& card, DType dtype, int64_t rows) {
  MutexLock lock(&segments_mutex_);
  ForgetFreedSegments();
  std::weak_ptr<Segment>& place = segments_[id];
  if (std::shared_ptr<Segment> segment = place.lock()) {
    segment->HasAtLeast(rows);
    return segment;
  }
  std::shared_ptr<Segment> segment = Segment::Sealed(id, card, dtype, database_.get(), segment_context_, rows);
  place = segment;
  return segment;
}

void Store::ForgetFreedSegments() {
  if (segments_.size() < forget_at_) return;
  absl::erase_if(segments_, [](const auto& entry) { return entry.second.expired(); });
  forget_at_ = std::max(kFewSegments, 2 * segments_.size());
}

void Store::RegisterSegment(const std::shared_ptr<Segment>& segment) {
  MutexLock lock(&segments_mutex_);
  ForgetFreedSegments();
  segments_[segment->id()] = segment;
}

void Store::ManifestReplaced(const MemoryManifest* before, const MemoryManifest* after) {
  std::vector<IndexId> unnamed_indexes;
  {
    MutexLock lock(&segments_mutex_);
    // Up first, so that what both name does not touch zero.
    if (after != nullptr) {
      for (const SegmentRef& ref : after->segments) ++segment_references_[ref.id];
      for (const IndexRef& ref : after->indexes) ++index_references_[ref.id];
    }
    if (before != nullptr) {
      for (const SegmentRef& ref : before->segments) {
        if (--segment_references_[ref.id] > 0) continue;
        segment_references_.erase(ref.id);
        dropped_.push_back(
            {ref.id, ref.chunked_rows * TokenBytes(before->card, before->options.stored_dtype), after != nullptr});
      }
      for (const IndexRef& ref : before->indexes) {
        if (--index_references_[ref.id] > 0) continue;
        index_references_.erase(ref.id);
        unnamed_indexes.push_back(ref.id);
      }
    }
  }
  if (unnamed_indexes.empty()) return;
  // A reader that still holds such an index and finds no blob builds it from the rows: nothing is lost.
  if (const absl::Status status = database_->DropIndexes(unnamed_indexes); !status.ok()) Log(status.message());
}

void Store::TakeDropped(bool all, std::vector<SegmentId>* logged, std::vector<SegmentId>* chunked) {
  const auto free = [this](const DroppedSegment& dropped) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    const auto place = segments_.find(dropped.id);
    return place == segments_.end() || place->second.expired();
  };
  MutexLock lock(&segments_mutex_);
  int64_t bytes = 0, segments = 0;
  bool evicted = false;
  for (const DroppedSegment& dropped : dropped_) {
    if (dropped.chunk_bytes == 0 || !free(dropped)) continue;
    bytes += dropped.chunk_bytes;
    ++segments;
    evicted |= dropped.evicted;
  }
  const bool take_chunked =
      segments > 0 && (all || evicted || segments >= kManyDroppedSegments ||
                       bytes >= std::min(kManyDroppedBytes, static_cast<int64_t>(database_->ChunkDiskBytes()) / 4));
  std::erase_if(dropped_, [&](const DroppedSegment& dropped) {
    if ((dropped.chunk_bytes > 0 && !take_chunked) || !free(dropped)) return false;
    segments_.erase(dropped.id);
    (dropped.chunk_bytes > 0 ? chunked : logged)->push_back(dropped.id);
    return true;
  });
}

void Store::CollectDropped(bool all) {
  std::vector<SegmentId> logged, chunked;
  TakeDropped(all, &logged, &chunked);
  // What cannot be dropped now is an orphan, and collected when the store is opened next.
  absl::Status status = database_->DropLogs(logged);
  status.Update(database_->DropSegments(chunked));
  if (all || !logged.empty() || !chunked.empty()) status.Update(database_->Compact(all));
  if (!status.ok()) Log(status.message());
}

absl::StatusOr<int64_t> Store::DiskBytesBeyondBudget(int64_t more_bytes) {
  MNEME_ASSIGN_OR_RETURN(const DatabaseStats stats, database_->Stats());
  return static_cast<int64_t>(stats.disk_bytes) + more_bytes - options_.disk_budget_bytes;
}

absl::Status Store::CheckDiskBudget(int64_t more_bytes) {
  if (options_.disk_budget_bytes <= 0) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(int64_t beyond, DiskBytesBeyondBudget(more_bytes));
  if (beyond <= 0) return absl::OkStatus();
  CollectDropped(/*all=*/true);
  MNEME_ASSIGN_OR_RETURN(beyond, DiskBytesBeyondBudget(more_bytes));
  if (beyond <= 0) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("disk_budget_bytes: the commit would take the store to about ",
                                                   options_.disk_budget_bytes + beyond, " bytes, the budget is ",
                                                   options_.disk_budget_bytes));
}

void Store::ScheduleIndexBuild(const std::shared_ptr<Memory>& memory) {
  MutexLock lock(&background_mutex_);
  due_.push_back(memory);
  background_due_.NotifyOne();
}

void Store::Background() {
  const FloatingPointScope default_environment;
  while (true) {
    std::shared_ptr<Memory> memory;
    {
      MutexLock lock(&background_mutex_);
      while (!stopping_ && due_.empty()) background_due_.Wait(&background_mutex_);
      if (stopping_) return;
      memory = due_.front().lock();
      due_.pop_front();
    }
    if (memory == nullptr) continue;
    // A store that closes does not wait for the whole build.
    const absl::Status status = memory->BuildIndexes([this](int64_t, int64_t) {
      MutexLock lock(&background_mutex_);
      return !stopping_;
    });
    if (!status.ok()) Log(absl::StrCat("indices of memory \"", memory->name(), "\": ", status.message()));
  }
}

}  // namespace mneme
