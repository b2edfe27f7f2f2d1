// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_DEVICE_GRAPH_H_
#define MNEME_MEMORY_ATTEND_DEVICE_GRAPH_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "base/mutex.h"
#include "memory/attend/device_problem.h"
#include "memory/attend/request.h"
#include "memory/device/device.h"
#include "memory/device/mirror.h"

namespace mneme {

// What the captured calls of a graph read from the next replay on. The memory arrays are [batch].
struct GraphUpdate {
  absl::Span<Memory* const> memories;        // null: none
  const int64_t* memory_begin = nullptr;     // null: 0
  const int64_t* memory_end = nullptr;       // null: all rows
  const int64_t* local_offsets = nullptr;    // [batch + 1]; null: as captured
  const int64_t* query_positions = nullptr;  // [tokens]; null: behind what is visible
};

// Attend calls that a host captures into a CUDA graph, and the arguments that replays of the graph read.
//
// A captured call is the two kernel launches alone. What changes from step to step (which memories, where their rows
// lie, what is visible, local lengths, positions) is read from a table on the device. Update rewrites the tables on the
// stream of the replays, so a host captures once. Rows that replays may read are protected by MemoryMirror::RowHold
// until the next Update or the end of the object.
//
// Thread-safe: calls run one after another. The device outlives the object.
class DeviceGraph {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceGraph>> New(Device& device);
  // Requires: no replay is running or follows.
  ~DeviceGraph();
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;

  // Returns: the queries of each captured call; 0: no call is captured.
  int64_t tokens();

  // Adds the request's launches to the graph that `stream` is being captured into. Of its memories only the row type
  // is used, of its sequences the queries and local rows; no memory is visible before the first Update.
  // Requires: all tensors lie on the device, and there is no other output.
  // Errors: Unimplemented, InvalidArgument, FailedPrecondition, ResourceExhausted leave the capture unchanged;
  // Unavailable makes it useless.
  absl::Status Capture(const AttendRequest& request, void* stream);

  // Queues the update on `stream` between the replays so far and those to come, which run there or wait for it, and
  // does not wait. Without has_stream it waits, and no replay may be running.
  // Errors: after InvalidArgument, FailedPrecondition and Unimplemented nothing has changed. After others
  // (ResourceExhausted: the rows have no room) replays see no memory. If not even that can be queued, the rows that
  // replays read so far stay held.
  absl::Status Update(const GraphUpdate& update, bool has_stream, void* stream);

 private:
  using RowHolds = std::vector<std::shared_ptr<MemoryMirror::RowHold>>;  // [sequences]

  // The argument arrays of some calls: [used] bytes, the same on the host and on the device.
  struct Table {
    std::vector<char> host;
    int64_t used = 0;  // bytes
    std::unique_ptr<DeviceBuffer> on_device;
  };
  struct Call {
    Call(const AttendRequest& request, const cuda::AttendProblem& problem)
        : layer(request.retrieve.layer),
          retrieve(layer),
          arguments(request, problem, buffer),
          stored(static_cast<DType>(problem.memory_type)) {}

    const LayerCard layer;
    RetrieveRequest retrieve;         // of `layer`; query_positions are set during an update
    std::vector<Sequence> sequences;  // as captured, without memories
    ArgumentBuffer buffer;            // in a table
    FusedArguments arguments;
    DType stored;  // of the memories' rows
    bool searches = false;
    int64_t local_rows = -1;  // of all sequences; -1: the call has no local rows
    RowHolds holds;           // of the rows that its replays read
  };
  // Scratch bytes between the two launches of a call. Calls on one stream share it.
  struct Workspace {
    void* stream = nullptr;
    std::unique_ptr<DeviceBuffer> buffer;
  };

  DeviceGraph(Device& device, std::shared_ptr<DeviceStream> stream) : device_(device), stream_(std::move(stream)) {}

  // Whether the request has the batch of the other calls.
  absl::Status CheckSameBatch(const AttendRequest& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns: a call for the request; its ArgumentBuffer has no bytes yet. Sets `problem` to its problem.
  absl::StatusOr<std::unique_ptr<Call>> NewCall(const AttendRequest& request, cuda::AttendProblem& problem)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns: a table with `bytes` left.
  absl::StatusOr<Table*> TableFor(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns: scratch on the device for calls on `stream`; null for 0 bytes.
  absl::StatusOr<char*> WorkspaceFor(int64_t bytes, void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Queues copies of bytes [begin, end) of a table to the device.
  absl::Status CopyTable(const Table& table, int64_t begin, int64_t end, void* stream)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Copies the used bytes of all tables.
  absl::Status CopyTables(void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The arguments of an update: the whole, one memory, the local offsets [batch + 1].
  absl::Status CheckUpdate(const GraphUpdate& update) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckMemory(const Memory& memory, size_t number) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckLocalOffsets(const int64_t* offsets, size_t batch) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Ends the protection of the held rows: whatever changes them is ordered after the work on `stream` so far.
  absl::Status LiftHolds(void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Copies the rows to the device, holds them and writes them to the tables. On success the earlier holds end.
  absl::Status SetMemories(const GraphUpdate& update, void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same for one call, without copying its table. Requires: the mirrors are locked.
  absl::Status SetCallMemories(Call& call, const GraphUpdate& update, const std::vector<Snapshot>& snapshots,
                               void* stream, RowHolds& holds) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns: a sequence of a call, with the update's local rows.
  static Sequence UpdatedSequence(const Call& call, const GraphUpdate& update, size_t number);
  // Writes to the tables that no memory is visible.
  absl::Status HideMemories(const GraphUpdate& update, void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropHolds() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Orders later work on stream_ after the work on `stream` so far.
  absl::Status WaitFor(void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Device& device_;
  const std::shared_ptr<DeviceStream> stream_;  // orders tables and workspaces
  Mutex mutex_;
  void* event_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::vector<std::unique_ptr<Table>> tables_ ABSL_GUARDED_BY(mutex_);
  std::vector<Workspace> workspaces_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Call>> calls_ ABSL_GUARDED_BY(mutex_);
  RowHolds failed_holds_ ABSL_GUARDED_BY(mutex_);  // of updates that failed: replays may read these rows, too
};

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_DEVICE_GRAPH_H_
