// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_DEVICE_DEVICE_GRAPH_H_
#define MNEME_MEMORY_DEVICE_DEVICE_GRAPH_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "base/mutex.h"
#include "memory/attend/request.h"
#include "memory/device/device.h"
#include "memory/device/fused_problem.h"
#include "memory/device/mirror.h"

namespace mneme {

// Calls of Attend that a host captures into a CUDA graph, and what they find when it is replayed.
//
// A captured call is the two launches and nothing else. All that may change from step to step - which memories there
// are and where their rows lie, what is visible of them, lengths of local windows, positions - they read from a table
// on the device, which Update writes anew, on the stream of the replays. So a graph never has to be captured again for
// what becomes of a memory, and rows that it may read are held (MemoryMirror::Held) until an Update, or the end of
// this, lets go of them.
//
// Thread-safe; calls follow each other. The device outlives it.
class DeviceGraph {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceGraph>> New(Device& device);
  // No replay may be under way, or come.
  ~DeviceGraph();
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;

  // Queries of each of its calls; 0: there is none yet.
  int64_t tokens();

  // Adds the request's launches to the graph that `stream` is being captured into. All of its tensors lie on the
  // device, and it has no other output; of its memories only the type counts, of its sequences the queries and local
  // rows. Until the first Update nothing is visible to them. What is refused (Unimplemented, InvalidArgument,
  // FailedPrecondition, ResourceExhausted) has left the capture as it was; after Unavailable it is of no use.
  absl::Status Capture(const AttendRequest& request, void* stream);

  // What the calls find from the next replay on; as of a sequence, so for each of `batch`.
  struct Sight {
    absl::Span<Memory* const> memories;        // null: none
    const int64_t* memory_begin = nullptr;     // null: 0
    const int64_t* memory_end = nullptr;       // null: all
    const int64_t* local_offsets = nullptr;    // [batch + 1]; null: as captured
    const int64_t* query_positions = nullptr;  // [tokens]; null: behind what is visible
  };
  // Queued on `stream`, behind the replays so far and before those to come, which run there or wait for it; the host
  // does not wait. Without has_stream replays must be done, and it waits. InvalidArgument, FailedPrecondition or
  // Unimplemented: nothing is changed. After any other error (ResourceExhausted: no room for the rows) replays find no
  // memory; where the device cannot even be told so, what they read is not freed.
  absl::Status Update(const Sight& sight, bool has_stream, void* stream);

 private:
  // Small arrays of some calls, as the host has them and as they lie on the device.
  struct Table {
    std::vector<char> image;
    int64_t used = 0;
    std::unique_ptr<DeviceMemory> memory;
  };
  struct Call {
    Call(const AttendRequest& request, const cuda::AttendProblem& problem)
        : layer(request.retrieve.layer),
          retrieve(layer),
          inputs(request, problem, tray),
          stored(static_cast<DType>(problem.memory_type)) {}

    const LayerCard layer;
    RetrieveRequest retrieve;         // its layer is the above; positions are an update's
    std::vector<Sequence> sequences;  // as captured, without memories
    DeviceTray tray;
    FusedInputs inputs;
    DType stored;
    bool searches = false;
    int64_t local_rows = -1;                                // of all sequences; -1: the call has none
    std::vector<std::shared_ptr<MemoryMirror::Held>> held;  // [sequences]
  };
  // What the two launches of a call hand to each other: for one call after another on the same stream.
  struct Workspace {
    void* stream = nullptr;
    std::unique_ptr<DeviceMemory> memory;
  };

  DeviceGraph(Device& device, std::shared_ptr<DeviceStream> stream) : device_(device), stream_(std::move(stream)) {}

  absl::Status CheckLikeOthers(const AttendRequest& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Table*> TableFor(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<char*> WorkspaceFor(int64_t bytes, void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Queues that bytes [begin, end) of a table are its image's.
  absl::Status Send(const Table& table, int64_t begin, int64_t end, void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status SendAll(void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckSight(const Sight& sight) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Rows that are held may change, and blocks go, behind what is queued on `stream` so far.
  absl::Status LetChange(void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes the rows be there and has the tables say so; what was held before and is not any more goes.
  absl::Status Bind(const Sight& sight, void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same of one call, in its table's image; `held` becomes what its sequences read. With the mirrors' locks.
  absl::Status BindCall(Call& call, const Sight& sight, const std::vector<Snapshot>& snapshots, void* stream,
                        std::vector<std::shared_ptr<MemoryMirror::Held>>& held) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A call's sequence with the local rows that the sight gives it.
  static Sequence SequenceOf(const Call& call, const Sight& sight, size_t number);
  // Has the tables say that no memory is visible.
  absl::Status Blank(const Sight& sight, void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tables go behind what is queued on `stream` so far.
  absl::Status Follow(void* stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LetGo() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Device& device_;
  const std::shared_ptr<DeviceStream> stream_;  // of tables and workspaces
  Mutex mutex_;
  void* event_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::vector<std::unique_ptr<Table>> tables_ ABSL_GUARDED_BY(mutex_);
  std::vector<Workspace> workspaces_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Call>> calls_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<MemoryMirror::Held>> doubtful_ ABSL_GUARDED_BY(mutex_);  // may still be read
};

}  // namespace mneme

#endif  // MNEME_MEMORY_DEVICE_DEVICE_GRAPH_H_
