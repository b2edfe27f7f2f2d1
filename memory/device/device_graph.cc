// SPDX-License-Identifier: Apache-2.0
#include "memory/device/device_graph.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/attend/memory_view.h"
#include "memory/store.h"

namespace mneme {
namespace {

constexpr int64_t kFirstTableBytes = int64_t{32} << 10;

// Whether rows of `layer` of `memory` (the batch's `number`-th) can be searched on `device`.
absl::Status CheckMemory(const Memory& memory, size_t number, const LayerCard& layer, const Device& device) {
  if (memory.store().device().get() != &device) {
    return absl::InvalidArgumentError(
        absl::StrCat("memories[", number, "]: expected one of the graph's store, got one of another"));
  }
  if (memory.mirror() != nullptr && MemoryMirror::Fits(layer, memory.options().stored_dtype)) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("memories[", number,
                   "]: expected one that can lie on the device: rows f16, bf16 or i8 of 64, 128 or 256 dims, "
                   "without an index of a kind of its own; got \"",
                   memory.name(), "\", which cannot"));
}

absl::Status CheckStored(DType got, size_t number, DType expected) {
  if (got == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("memories[", number, "]: expected rows of ", DTypeName(expected),
                                                 ", as the graph's calls search, got ", DTypeName(got)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceGraph>> DeviceGraph::New(Device& device) {
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<DeviceStream> stream, DeviceStream::New(device));
  std::unique_ptr<DeviceGraph> graph(new DeviceGraph(device, std::move(stream)));
  MutexLock lock(&graph->mutex_);
  MNEME_RETURN_IF_ERROR(DeviceStatus(device.runtime().NewEvent(&graph->event_)));
  return graph;
}

DeviceGraph::~DeviceGraph() {
  if (event_ != nullptr) device_.runtime().DeleteEvent(event_);
}

int64_t DeviceGraph::tokens() {
  MutexLock lock(&mutex_);
  return calls_.empty() ? 0 : calls_.front()->sequences.back().query_end;
}

absl::Status DeviceGraph::CheckLikeOthers(const AttendRequest& request) const {
  if (calls_.empty()) return absl::OkStatus();
  const std::vector<Sequence>& first = calls_.front()->sequences;
  const absl::Span<const Sequence> own = request.retrieve.sequences;
  if (own.size() != first.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("batch: expected ", first.size(), " as the graph's first call has, got ", own.size()));
  }
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i].query_end == first[i].query_end) continue;
    return absl::InvalidArgumentError(absl::StrCat("args.query_offsets[", i + 1, "]: expected ", first[i].query_end,
                                                   " as the graph's first call has, got ", own[i].query_end));
  }
  return absl::OkStatus();
}

absl::StatusOr<DeviceGraph::Table*> DeviceGraph::TableFor(int64_t bytes) {
  if (bytes > Device::kPieceBytes) {
    return absl::UnimplementedError(absl::StrCat("batch: expected sequences whose small arrays take at most ",
                                                 Device::kPieceBytes, " bytes a call, got ", bytes));
  }
  int64_t wanted = kFirstTableBytes;
  if (!tables_.empty()) {
    Table* const last = tables_.back().get();
    if (last->used + bytes <= last->memory->bytes()) return last;
    wanted = std::min(Device::kPieceBytes, 2 * last->memory->bytes());
  }
  auto table = std::make_unique<Table>();
  MNEME_ASSIGN_OR_RETURN(table->memory, DeviceMemory::New(stream_, device_.call_budget(), std::max(wanted, bytes)));
  table->image.resize(static_cast<size_t>(table->memory->bytes()));
  tables_.push_back(std::move(table));
  return tables_.back().get();
}

absl::StatusOr<char*> DeviceGraph::WorkspaceFor(int64_t bytes, void* stream) {
  if (bytes == 0) return nullptr;
  for (const Workspace& workspace : workspaces_) {
    if (workspace.stream == stream && workspace.memory->bytes() >= bytes) return workspace.memory->data();
  }
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<DeviceMemory> memory,
                         DeviceMemory::New(stream_, device_.call_budget(), bytes));
  workspaces_.push_back({stream, std::move(memory)});
  return workspaces_.back().memory->data();
}

absl::Status DeviceGraph::Send(const Table& table, int64_t begin, int64_t end, void* stream) {
  const int64_t bytes = end - begin;
  if (bytes == 0) return absl::OkStatus();
  return device_.Stage(
      bytes, stream, [&](char* to) { std::memcpy(to, table.image.data() + begin, static_cast<size_t>(bytes)); },
      [&](const char* from) {
        return DeviceStatus(
            device_.runtime().Copy({from, bytes, table.memory->data() + begin, bytes, bytes, 1}, stream));
      });
}

absl::Status DeviceGraph::SendAll(void* stream) {
  for (const std::unique_ptr<Table>& table : tables_) MNEME_RETURN_IF_ERROR(Send(*table, 0, table->used, stream));
  return absl::OkStatus();
}

absl::Status DeviceGraph::Capture(const AttendRequest& request, void* stream) {
  MutexLock lock(&mutex_);
  if (const std::string unknown = UnknownToKernels(request); !unknown.empty()) {
    return absl::UnimplementedError(absl::StrCat(unknown, ", in a call that is captured"));
  }
  MNEME_RETURN_IF_ERROR(CheckLikeOthers(request));
  const RetrieveRequest& retrieve = request.retrieve;
  const bool searches = GreatestTopK(request) > 0;
  std::optional<DType> stored;
  for (size_t i = 0; i < retrieve.sequences.size() && searches; ++i) {
    const Memory* const memory = retrieve.sequences[i].memory;
    if (memory == nullptr) continue;
    MNEME_RETURN_IF_ERROR(CheckMemory(*memory, i, retrieve.layer, device_));
    const DType own = memory->options().stored_dtype;
    if (!stored.has_value()) stored = own == DType::kI8 ? own : request.query.dtype;
    MNEME_RETURN_IF_ERROR(CheckStored(own, i, *stored));
  }
  cuda::AttendProblem problem = FusedProblemOf(request, stored.value_or(request.query.dtype));
  auto call = std::make_unique<Call>(request, problem);
  call->searches = searches;
  if (request.local_keys.data != nullptr) call->local_rows = request.local_keys.rows;
  call->sequences.assign(retrieve.sequences.begin(), retrieve.sequences.end());
  call->held.resize(call->sequences.size());

  const int64_t bytes = call->tray.input_bytes();
  MNEME_ASSIGN_OR_RETURN(Table* const table, TableFor(bytes));
  call->tray.Lay(table->image.data() + table->used, table->memory->data() + table->used);
  call->inputs.Fill(request, call->tray, problem);
  cuda::AttendBounds bounds;
  bounds.memory_grows = true;
  for (size_t i = 0; i < call->sequences.size(); ++i) {
    Sequence& sequence = call->sequences[i];
    sequence.memory = nullptr;
    sequence.snapshot = nullptr;
    call->inputs.See(call->retrieve, sequence, i, 0, {}, call->tray);
    bounds.queries = std::max(bounds.queries, sequence.query_end - sequence.query_begin);
    bounds.local_rows = std::max(bounds.local_rows, sequence.local_end - sequence.local_begin);
  }
  cuda::Runtime& runtime = device_.runtime();
  cuda::AttendPlan plan;
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Prepare(problem, bounds, &plan)));
  MNEME_ASSIGN_OR_RETURN(char* const workspace, WorkspaceFor(plan.workspace_bytes, stream));
  // Nothing of a graph may wait for what is not part of it, so what it reads is there before it is launched.
  MNEME_RETURN_IF_ERROR(Send(*table, table->used, table->used + bytes, stream_->get()));
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Record(event_, stream_->get())));
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Synchronise(event_)));
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Attend(problem, plan, workspace, stream)));
  table->used += bytes;
  calls_.push_back(std::move(call));
  return absl::OkStatus();
}

absl::Status DeviceGraph::CheckSight(const Sight& sight) const {
  if (calls_.empty()) {
    return absl::FailedPreconditionError("graph: expected one that calls were captured into, got one without any");
  }
  const size_t batch = calls_.front()->sequences.size();
  if (sight.memories.size() != batch) {
    return absl::InvalidArgumentError(
        absl::StrCat("batch: expected ", batch, " as the captured calls have, got ", sight.memories.size()));
  }
  for (size_t i = 0; i < batch; ++i) {
    for (const auto& [name, bounds] : {std::pair{"begin", sight.memory_begin}, std::pair{"end", sight.memory_end}}) {
      if (bounds == nullptr || bounds[i] >= 0) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("args.memory_", name, "[", i, "]: expected 0 or more, got ", bounds[i]));
    }
    const Memory* const memory = sight.memories[i];
    for (const std::unique_ptr<Call>& call : calls_) {
      if (memory == nullptr || !call->searches) continue;
      const LayerCard& layer = call->retrieve.layer;
      const int place = memory->card().FindLayer(layer.layer);
      if (place < 0 || !(memory->card().layers[static_cast<size_t>(place)] == layer)) {
        return absl::InvalidArgumentError(absl::StrCat("memories[", i, "]: expected one with the layer ", layer.layer,
                                                       " that was captured, got \"", memory->name(), "\""));
      }
      MNEME_RETURN_IF_ERROR(CheckMemory(*memory, i, layer, device_));
      MNEME_RETURN_IF_ERROR(CheckStored(memory->options().stored_dtype, i, call->stored));
    }
  }
  if (sight.local_offsets == nullptr) return absl::OkStatus();
  int64_t local_rows = -1;
  for (const std::unique_ptr<Call>& call : calls_) {
    if (call->local_rows >= 0) local_rows = local_rows < 0 ? call->local_rows : std::min(local_rows, call->local_rows);
  }
  if (local_rows < 0) {
    return absl::InvalidArgumentError("args.local_offsets: expected NULL, since no captured call has local rows");
  }
  for (size_t i = 0; i <= batch; ++i) {
    const int64_t offset = sight.local_offsets[i];
    const bool ascends = i == 0 ? offset == 0 : offset >= sight.local_offsets[i - 1];
    if (ascends && offset <= local_rows) continue;
    return absl::InvalidArgumentError(absl::StrCat("args.local_offsets[", i,
                                                   "]: expected ascending offsets from 0 to at most ", local_rows,
                                                   ", the local rows that were captured, got ", offset));
  }
  return absl::OkStatus();
}

absl::Status DeviceGraph::LetChange(void* stream) {
  std::vector<MemoryMirror::Held*> all;
  for (const std::shared_ptr<MemoryMirror::Held>& held : doubtful_) all.push_back(held.get());
  for (const std::unique_ptr<Call>& call : calls_) {
    for (const std::shared_ptr<MemoryMirror::Held>& held : call->held) {
      if (held != nullptr) all.push_back(held.get());
    }
  }
  if (all.empty()) return absl::OkStatus();
  cuda::Runtime& runtime = device_.runtime();
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Record(event_, stream)));
  std::vector<void*> waited;
  for (const MemoryMirror::Held* const held : all) {
    void* const own = held->block->memory->stream();
    if (std::find(waited.begin(), waited.end(), own) != waited.end()) continue;
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Wait(own, event_)));
    waited.push_back(own);
  }
  for (MemoryMirror::Held* const held : all) held->rows = 0;
  return absl::OkStatus();
}

Sequence DeviceGraph::SequenceOf(const Call& call, const Sight& sight, size_t number) {
  Sequence sequence = call.sequences[number];
  if (sight.local_offsets != nullptr && call.local_rows >= 0) {
    sequence.local_begin = sight.local_offsets[number];
    sequence.local_end = sight.local_offsets[number + 1];
  }
  return sequence;
}

absl::Status DeviceGraph::BindCall(Call& call, const Sight& sight, const std::vector<Snapshot>& snapshots, void* stream,
                                   std::vector<std::shared_ptr<MemoryMirror::Held>>& held) {
  for (size_t i = 0; i < call.sequences.size(); ++i) {
    Sequence sequence = SequenceOf(call, sight, i);
    MemoryMirror::View view;
    int64_t end = 0;
    bool sees = false;
    if (call.searches && sight.memories[i] != nullptr) {
      sequence.memory = sight.memories[i];
      sequence.snapshot = &snapshots[i];
      sequence.memory_begin = sight.memory_begin != nullptr ? sight.memory_begin[i] : 0;
      sequence.memory_end = sight.memory_end != nullptr ? sight.memory_end[i] : -1;
      const LayerView memory = MakeLayerView(call.retrieve, sequence);
      end = memory.end;
      sees = sequence.memory_begin < end && sequence.query_begin < sequence.query_end;
      if (sees) {
        MemoryMirror& mirror = *sequence.memory->mirror();
        MNEME_ASSIGN_OR_RETURN(const std::optional<MemoryMirror::View> there,
                               mirror.Acquire(memory.snapshot, memory.layer, sequence.memory_begin, end, stream));
        if (!there.has_value()) {
          return absl::ResourceExhaustedError(absl::StrCat("memories[", i, "]: expected room for its rows of layer ",
                                                           call.retrieve.layer.layer,
                                                           " on the device (options.device_budget_bytes), got none"));
        }
        view = *there;
        mirror.Hold(memory.layer, view, held[i]);
      }
    }
    if (!sees) held[i].reset();
    call.inputs.See(call.retrieve, sequence, i, end, view, call.tray);
  }
  return absl::OkStatus();
}

absl::Status DeviceGraph::Bind(const Sight& sight, void* stream) {
  MirrorLocks locks;
  std::vector<Snapshot> snapshots(sight.memories.size());
  for (size_t i = 0; i < snapshots.size(); ++i) {
    if (sight.memories[i] == nullptr) continue;
    // One for all layers.
    snapshots[i] = sight.memories[i]->TakeSnapshot();
    if (sight.memories[i]->mirror() != nullptr) locks.Add(sight.memories[i]->mirror());
  }
  locks.Take();
  std::vector<std::vector<std::shared_ptr<MemoryMirror::Held>>> held;
  absl::Status status;
  for (const std::unique_ptr<Call>& call : calls_) {
    if (!status.ok()) break;
    held.push_back(call->held);
    call->retrieve.query_positions = sight.query_positions;
    status = BindCall(*call, sight, snapshots, stream, held.back());
    call->retrieve.query_positions = nullptr;  // the caller's
  }
  if (status.ok()) status = SendAll(stream);
  if (status.ok()) {
    for (size_t i = 0; i < calls_.size(); ++i) calls_[i]->held = std::move(held[i]);
    doubtful_.clear();
    return status;
  }
  for (const auto& of_call : held) {
    for (const auto& one : of_call) {
      if (one != nullptr) doubtful_.push_back(one);
    }
  }
  if (!absl::IsResourceExhausted(status)) locks.Forget();
  return status;
}

absl::Status DeviceGraph::Blank(const Sight& sight, void* stream) {
  for (const std::unique_ptr<Call>& call : calls_) {
    for (size_t i = 0; i < call->sequences.size(); ++i) {
      call->inputs.See(call->retrieve, SequenceOf(*call, sight, i), i, 0, {}, call->tray);
    }
  }
  return SendAll(stream);
}

absl::Status DeviceGraph::Follow(void* stream) {
  MNEME_RETURN_IF_ERROR(DeviceStatus(device_.runtime().Record(event_, stream)));
  return DeviceStatus(device_.runtime().Wait(stream_->get(), event_));
}

void DeviceGraph::LetGo() {
  for (const std::unique_ptr<Call>& call : calls_) call->held.assign(call->held.size(), nullptr);
  doubtful_.clear();
}

absl::Status DeviceGraph::Update(const Sight& sight, bool has_stream, void* stream) {
  MutexLock lock(&mutex_);
  MNEME_RETURN_IF_ERROR(CheckSight(sight));
  if (!has_stream) stream = stream_->get();
  bool captured = false;
  absl::Status status = DeviceStatus(device_.runtime().IsCaptured(stream, &captured));
  if (captured) {
    return absl::FailedPreconditionError(
        "args.stream: expected one that is not being captured, since replays follow the call; got one that is");
  }
  if (status.ok()) status = LetChange(stream);
  const bool may_go = status.ok();
  if (status.ok()) status = Bind(sight, stream);
  // What was read until now may take the room that is wanted.
  if (may_go && absl::IsResourceExhausted(status) && Blank(sight, stream).ok()) {
    LetGo();
    status = Bind(sight, stream);
  }
  if (status.ok() && has_stream) status = Follow(stream);
  if (!status.ok()) {
    if (Blank(sight, stream).ok() && may_go) LetGo();
    if (has_stream) Follow(stream).IgnoreError();  // what failed is told
    return status;
  }
  if (has_stream) return status;
  MNEME_RETURN_IF_ERROR(DeviceStatus(device_.runtime().Record(event_, stream)));
  return DeviceStatus(device_.runtime().Synchronise(event_));
}

}  // namespace mneme
