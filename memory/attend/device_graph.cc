// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/device_graph.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/attend/device_support.h"
#include "memory/attend/memory_view.h"
#include "memory/device/mirror_locks.h"
#include "memory/store_context.h"

namespace mneme {
namespace {

constexpr int64_t kFirstTableBytes = int64_t{32} << 10;

absl::Status InvalidArgument(Argument argument, int64_t element, std::string expected, std::string got) {
  return ArgumentError({.argument = argument,
                        .expected = std::move(expected),
                        .got = std::move(got),
                        .element = element,
                        .code = absl::StatusCode::kInvalidArgument});
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceGraph>> DeviceGraph::New(Device& device) {
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<DeviceStream> stream, DeviceStream::New(device.runtime()));
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

absl::Status DeviceGraph::CheckSameBatch(const AttendRequest& request) const {
  if (calls_.empty()) return absl::OkStatus();
  const std::vector<Sequence>& first = calls_.front()->sequences;
  const absl::Span<const Sequence> own = request.retrieve.sequences;
  if (own.size() != first.size()) {
    return InvalidArgument(Argument::kBatch, -1, absl::StrCat(first.size(), " as the graph's first call has"),
                           absl::StrCat(own.size()));
  }
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i].query_end == first[i].query_end) continue;
    return InvalidArgument(Argument::kQueryOffsets, static_cast<int64_t>(i + 1),
                           absl::StrCat(first[i].query_end, " as the graph's first call has"),
                           absl::StrCat(own[i].query_end));
  }
  return absl::OkStatus();
}

absl::StatusOr<DeviceGraph::Table*> DeviceGraph::TableFor(int64_t bytes) {
  // A table goes through one slot of the staging ring.
  if (bytes > StagingRing::kSlotBytes) {
    return ArgumentError(
        {Argument::kBatch,
         absl::StrCat("sequences whose small arrays take at most ", StagingRing::kSlotBytes, " bytes a call"),
         absl::StrCat(bytes)});
  }
  int64_t capacity = kFirstTableBytes;
  if (!tables_.empty()) {
    Table* const last = tables_.back().get();
    if (last->used + bytes <= last->on_device->bytes()) return last;
    capacity = std::min(StagingRing::kSlotBytes, 2 * last->on_device->bytes());
  }
  auto table = std::make_unique<Table>();
  MNEME_ASSIGN_OR_RETURN(table->on_device,
                         DeviceBuffer::New(stream_, device_.call_budget(), std::max(capacity, bytes)));
  table->host.resize(static_cast<size_t>(table->on_device->bytes()));
  tables_.push_back(std::move(table));
  return tables_.back().get();
}

absl::StatusOr<char*> DeviceGraph::WorkspaceFor(int64_t bytes, void* stream) {
  if (bytes == 0) return nullptr;
  for (const Workspace& workspace : workspaces_) {
    if (workspace.stream == stream && workspace.buffer->bytes() >= bytes) return workspace.buffer->data();
  }
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<DeviceBuffer> buffer,
                         DeviceBuffer::New(stream_, device_.call_budget(), bytes));
  workspaces_.push_back({stream, std::move(buffer)});
  return workspaces_.back().buffer->data();
}

absl::Status DeviceGraph::CopyTable(const Table& table, int64_t begin, int64_t end, void* stream) {
  const int64_t bytes = end - begin;
  if (bytes == 0) return absl::OkStatus();
  return device_.staging().Copy(
      bytes, stream, [&](char* to) { std::memcpy(to, table.host.data() + begin, static_cast<size_t>(bytes)); },
      [&](const char* from) {
        return DeviceStatus(
            device_.runtime().Copy({from, bytes, table.on_device->data() + begin, bytes, bytes, 1}, stream));
      });
}

absl::Status DeviceGraph::CopyTables(void* stream) {
  for (const std::unique_ptr<Table>& table : tables_) MNEME_RETURN_IF_ERROR(CopyTable(*table, 0, table->used, stream));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DeviceGraph::Call>> DeviceGraph::NewCall(const AttendRequest& request,
                                                                        cuda::AttendProblem& problem) {
  UnsupportedReason reason = CheckDeviceSupport(request, DevicePart::kAll);
  if (!reason.supported()) {
    reason.got += ", in a call that is captured";
    return ArgumentError(reason);
  }
  MNEME_RETURN_IF_ERROR(CheckSameBatch(request));
  const RetrieveRequest& retrieve = request.retrieve;
  const bool searches = GreatestTopK(request) > 0;
  LaunchMemories memories(retrieve.layer, request.query.dtype, &device_);
  for (size_t i = 0; i < retrieve.sequences.size() && searches; ++i) {
    if (retrieve.sequences[i].memory == nullptr) continue;
    MNEME_RETURN_IF_ERROR(ArgumentError(memories.Add(*retrieve.sequences[i].memory, i)));
  }
  problem = MakeFusedProblem(request, memories.stored().value_or(request.query.dtype));
  auto call = std::make_unique<Call>(request, problem);
  call->searches = searches;
  if (request.local_keys.data != nullptr) call->local_rows = request.local_keys.rows;
  call->sequences.assign(retrieve.sequences.begin(), retrieve.sequences.end());
  for (Sequence& sequence : call->sequences) {
    sequence.memory = nullptr;
    sequence.snapshot = nullptr;
  }
  call->holds.resize(call->sequences.size());
  return call;
}

absl::Status DeviceGraph::Capture(const AttendRequest& request, void* stream) {
  MutexLock lock(&mutex_);
  cuda::AttendProblem problem;
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<Call> call, NewCall(request, problem));
  const int64_t bytes = call->buffer.input_bytes();
  MNEME_ASSIGN_OR_RETURN(Table* const table, TableFor(bytes));
  call->buffer.Place(table->host.data() + table->used, table->on_device->data() + table->used);
  call->arguments.Fill(request, call->buffer, problem);
  cuda::AttendBounds bounds;
  bounds.memory_grows = true;
  for (size_t i = 0; i < call->sequences.size(); ++i) {
    const Sequence& sequence = call->sequences[i];
    call->arguments.SetSequence(call->retrieve, sequence, i, 0, {}, call->buffer);
    bounds.queries = std::max(bounds.queries, sequence.query_end - sequence.query_begin);
    bounds.local_rows = std::max(bounds.local_rows, sequence.local_end - sequence.local_begin);
  }
  cuda::Runtime& runtime = device_.runtime();
  cuda::AttendPlan plan;
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Prepare(problem, bounds, &plan)));
  MNEME_ASSIGN_OR_RETURN(char* const workspace, WorkspaceFor(plan.workspace_bytes, stream));
  // Work in a graph cannot wait for other streams, so the arguments are copied before the launch is captured.
  MNEME_RETURN_IF_ERROR(CopyTable(*table, table->used, table->used + bytes, stream_->get()));
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Record(event_, stream_->get())));
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Synchronise(event_)));
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Attend(problem, plan, workspace, stream)));
  table->used += bytes;
  calls_.push_back(std::move(call));
  return absl::OkStatus();
}

absl::Status DeviceGraph::CheckMemory(const Memory& memory, size_t number) const {
  for (const std::unique_ptr<Call>& call : calls_) {
    if (!call->searches) continue;
    const LayerCard& layer = call->layer;
    const int place = memory.card().FindLayer(layer.layer);
    if (place < 0 || !(memory.card().layers[static_cast<size_t>(place)] == layer)) {
      return InvalidArgument(Argument::kMemories, static_cast<int64_t>(number),
                             absl::StrCat("one with the layer ", layer.layer, " that was captured"),
                             absl::StrCat("\"", memory.name(), "\""));
    }
    LaunchMemories memories(layer, call->stored, &device_, call->stored);
    MNEME_RETURN_IF_ERROR(ArgumentError(memories.Add(memory, number)));
  }
  return absl::OkStatus();
}

absl::Status DeviceGraph::CheckLocalOffsets(const int64_t* offsets, size_t batch) const {
  int64_t local_rows = -1;
  for (const std::unique_ptr<Call>& call : calls_) {
    if (call->local_rows >= 0) local_rows = local_rows < 0 ? call->local_rows : std::min(local_rows, call->local_rows);
  }
  if (local_rows < 0) {
    return InvalidArgument(Argument::kLocalOffsets, -1, "NULL, since no captured call has local rows", "a pointer");
  }
  for (size_t i = 0; i <= batch; ++i) {
    const bool ascends = i == 0 ? offsets[i] == 0 : offsets[i] >= offsets[i - 1];
    if (ascends && offsets[i] <= local_rows) continue;
    return InvalidArgument(
        Argument::kLocalOffsets, static_cast<int64_t>(i),
        absl::StrCat("ascending offsets from 0 to at most ", local_rows, ", the local rows that were captured"),
        absl::StrCat(offsets[i]));
  }
  return absl::OkStatus();
}

absl::Status DeviceGraph::CheckUpdate(const GraphUpdate& update) const {
  if (calls_.empty()) {
    return ArgumentError({.argument = Argument::kGraph,
                          .expected = "one that calls were captured into",
                          .got = "one without any",
                          .code = absl::StatusCode::kFailedPrecondition});
  }
  const size_t batch = calls_.front()->sequences.size();
  if (update.memories.size() != batch) {
    return InvalidArgument(Argument::kBatch, -1, absl::StrCat(batch, " as the captured calls have"),
                           absl::StrCat(update.memories.size()));
  }
  for (size_t i = 0; i < batch; ++i) {
    for (const auto& [argument, bounds] :
         {std::pair{Argument::kMemoryBegin, update.memory_begin}, std::pair{Argument::kMemoryEnd, update.memory_end}}) {
      if (bounds == nullptr || bounds[i] >= 0) continue;
      return InvalidArgument(argument, static_cast<int64_t>(i), "0 or more", absl::StrCat(bounds[i]));
    }
    if (update.memories[i] != nullptr) MNEME_RETURN_IF_ERROR(CheckMemory(*update.memories[i], i));
  }
  return update.local_offsets == nullptr ? absl::OkStatus() : CheckLocalOffsets(update.local_offsets, batch);
}

absl::Status DeviceGraph::LiftHolds(void* stream) {
  std::vector<MemoryMirror::RowHold*> all;
  for (const std::shared_ptr<MemoryMirror::RowHold>& hold : failed_holds_) all.push_back(hold.get());
  for (const std::unique_ptr<Call>& call : calls_) {
    for (const std::shared_ptr<MemoryMirror::RowHold>& hold : call->holds) {
      if (hold != nullptr) all.push_back(hold.get());
    }
  }
  if (all.empty()) return absl::OkStatus();
  cuda::Runtime& runtime = device_.runtime();
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Record(event_, stream)));
  std::vector<void*> waiting;
  for (const MemoryMirror::RowHold* const hold : all) {
    void* const own = hold->block->buffer->stream();
    if (std::find(waiting.begin(), waiting.end(), own) != waiting.end()) continue;
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.Wait(own, event_)));
    waiting.push_back(own);
  }
  for (MemoryMirror::RowHold* const hold : all) hold->rows = 0;
  return absl::OkStatus();
}

Sequence DeviceGraph::UpdatedSequence(const Call& call, const GraphUpdate& update, size_t number) {
  Sequence sequence = call.sequences[number];
  if (update.local_offsets != nullptr && call.local_rows >= 0) {
    sequence.local_begin = update.local_offsets[number];
    sequence.local_end = update.local_offsets[number + 1];
  }
  return sequence;
}

absl::Status DeviceGraph::SetCallMemories(Call& call, const GraphUpdate& update, const std::vector<Snapshot>& snapshots,
                                          void* stream, RowHolds& holds) {
  for (size_t i = 0; i < call.sequences.size(); ++i) {
    Sequence sequence = UpdatedSequence(call, update, i);
    MemoryMirror::View rows;
    int64_t end = 0;
    bool visible = false;
    if (call.searches && update.memories[i] != nullptr) {
      sequence.memory = update.memories[i];
      sequence.snapshot = &snapshots[i];
      sequence.memory_begin = update.memory_begin != nullptr ? update.memory_begin[i] : 0;
      sequence.memory_end = update.memory_end != nullptr ? update.memory_end[i] : -1;
      const LayerView view = MakeLayerView(call.retrieve, sequence);
      end = view.end;
      visible = sequence.memory_begin < end && sequence.query_begin < sequence.query_end;
      if (visible) {
        MemoryMirror& mirror = *sequence.memory->mirror();
        MNEME_ASSIGN_OR_RETURN(const std::optional<MemoryMirror::View> acquired,
                               mirror.Acquire(view.snapshot, view.layer, sequence.memory_begin, end, stream));
        if (!acquired.has_value()) {
          return ArgumentError({.argument = Argument::kMemories,
                                .expected = absl::StrCat("room for its rows of layer ", call.layer.layer,
                                                         " on the device (options.device_budget_bytes)"),
                                .got = "none",
                                .element = static_cast<int64_t>(i),
                                .code = absl::StatusCode::kResourceExhausted});
        }
        rows = *acquired;
        mirror.Hold(view.layer, rows, holds[i]);
      }
    }
    if (!visible) holds[i].reset();
    call.arguments.SetSequence(call.retrieve, sequence, i, end, rows, call.buffer);
  }
  return absl::OkStatus();
}

absl::Status DeviceGraph::SetMemories(const GraphUpdate& update, void* stream) {
  MirrorLocks locks;
  std::vector<Snapshot> snapshots(update.memories.size());  // each for all layers
  for (size_t i = 0; i < snapshots.size(); ++i) {
    if (update.memories[i] == nullptr) continue;
    snapshots[i] = update.memories[i]->TakeSnapshot();
    if (update.memories[i]->mirror() != nullptr) locks.Add(update.memories[i]->mirror());
  }
  locks.LockAll();
  std::vector<RowHolds> holds;  // [calls]
  absl::Status status;
  for (const std::unique_ptr<Call>& call : calls_) {
    if (!status.ok()) break;
    holds.push_back(call->holds);
    call->retrieve.query_positions = update.query_positions;
    status = SetCallMemories(*call, update, snapshots, stream, holds.back());
    call->retrieve.query_positions = nullptr;  // the array belongs to the caller
  }
  if (status.ok()) status = CopyTables(stream);
  if (status.ok()) {
    for (size_t i = 0; i < calls_.size(); ++i) calls_[i]->holds = std::move(holds[i]);
    failed_holds_.clear();
    return status;
  }
  for (const RowHolds& of_call : holds) {
    for (const auto& hold : of_call) {
      if (hold != nullptr) failed_holds_.push_back(hold);
    }
  }
  if (!absl::IsResourceExhausted(status)) locks.ClearAll();
  return status;
}

absl::Status DeviceGraph::HideMemories(const GraphUpdate& update, void* stream) {
  for (const std::unique_ptr<Call>& call : calls_) {
    for (size_t i = 0; i < call->sequences.size(); ++i) {
      call->arguments.SetSequence(call->retrieve, UpdatedSequence(*call, update, i), i, 0, {}, call->buffer);
    }
  }
  return CopyTables(stream);
}

absl::Status DeviceGraph::WaitFor(void* stream) {
  MNEME_RETURN_IF_ERROR(DeviceStatus(device_.runtime().Record(event_, stream)));
  return DeviceStatus(device_.runtime().Wait(stream_->get(), event_));
}

void DeviceGraph::DropHolds() {
  for (const std::unique_ptr<Call>& call : calls_) call->holds.assign(call->holds.size(), nullptr);
  failed_holds_.clear();
}

absl::Status DeviceGraph::Update(const GraphUpdate& update, bool has_stream, void* stream) {
  MutexLock lock(&mutex_);
  MNEME_RETURN_IF_ERROR(CheckUpdate(update));
  if (!has_stream) stream = stream_->get();
  bool captured = false;
  absl::Status status = DeviceStatus(device_.runtime().IsCaptured(stream, &captured));
  if (captured) {
    return ArgumentError({.argument = Argument::kStream,
                          .expected = "one that is not being captured, since replays follow the call",
                          .got = "one that is",
                          .code = absl::StatusCode::kFailedPrecondition});
  }
  if (status.ok()) status = LiftHolds(stream);
  const bool lifted = status.ok();
  if (status.ok()) status = SetMemories(update, stream);
  // The rows that were read until now may occupy the room.
  if (lifted && absl::IsResourceExhausted(status) && HideMemories(update, stream).ok()) {
    DropHolds();
    status = SetMemories(update, stream);
  }
  if (status.ok() && has_stream) status = WaitFor(stream);
  if (!status.ok()) {
    if (HideMemories(update, stream).ok() && lifted) DropHolds();
    if (has_stream) WaitFor(stream).IgnoreError();  // `status` is the error to report
    return status;
  }
  if (has_stream) return status;
  MNEME_RETURN_IF_ERROR(DeviceStatus(device_.runtime().Record(event_, stream)));
  return DeviceStatus(device_.runtime().Synchronise(event_));
}

}  // namespace mneme
