// SPDX-License-Identifier: Apache-2.0
#include "tests/attention/cuda/emulated_runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "attention/cuda/argument_error.h"
#include "tests/attention/cuda/emulated_attend.h"

namespace mneme::cuda {
namespace {

constexpr int64_t kArenaBytes = int64_t{1} << 30;
constexpr int kSearchWarps = 8, kFinishWarps = 4;
constexpr int kNothing = 0xFF;  // NaN in every type that has one

// The arena can be read and written while this lives.
class Open {
 public:
  explicit Open(char* arena) : arena_(arena) { Protect(PROT_READ | PROT_WRITE); }
  ~Open() { Protect(PROT_NONE); }
  Open(const Open&) = delete;
  Open& operator=(const Open&) = delete;

 private:
  void Protect(int how) {
    if (mprotect(arena_, kArenaBytes, how) != 0) std::abort();
  }
  char* const arena_;
};

}  // namespace

EmulatedDevice& EmulatedDevice::Get() {
  static auto* const device = new EmulatedDevice;
  return *device;
}

EmulatedDevice::EmulatedDevice() {
  void* const arena = mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == MAP_FAILED) {
    std::perror("the emulated device's memory");
    std::abort();
  }
  arena_ = static_cast<char*>(arena);
}

void EmulatedDevice::Reset(uint32_t seed) {
  const std::lock_guard lock(mutex_);
  random_.seed(seed);
  failure_.clear();
  fail_in_ = -1;
  present_ = true;
  synchronised_ = allocations_ = attends_ = calls_ = 0;
}

void EmulatedDevice::FailCall(int64_t number) {
  const std::lock_guard lock(mutex_);
  fail_in_ = number;
}

void EmulatedDevice::BeginCapture(void* stream) {
  const std::lock_guard lock(mutex_);
  At(stream).capture = std::make_unique<Graph>();
  At(stream).spoilt = false;
}

std::unique_ptr<EmulatedDevice::Graph> EmulatedDevice::EndCapture(void* stream) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Graph> graph = std::move(At(stream).capture);
  if (At(stream).spoilt) graph.reset();
  return graph;
}

void EmulatedDevice::Replay(const Graph& graph, void* stream) {
  const std::lock_guard lock(mutex_);
  for (const std::function<void()>& run : graph) Queue(stream, run);
}

int64_t EmulatedDevice::synchronised() const {
  const std::lock_guard lock(mutex_);
  return synchronised_;
}
int64_t EmulatedDevice::allocations() const {
  const std::lock_guard lock(mutex_);
  return allocations_;
}
int64_t EmulatedDevice::attends() const {
  const std::lock_guard lock(mutex_);
  return attends_;
}
int64_t EmulatedDevice::bytes_held() const {
  const std::lock_guard lock(mutex_);
  return held_;
}
int64_t EmulatedDevice::calls() const {
  const std::lock_guard lock(mutex_);
  return calls_;
}

std::string EmulatedDevice::Finish() {
  const std::lock_guard lock(mutex_);
  return RunUntil([this] {
    return std::all_of(streams_.begin(), streams_.end(), [](const auto& entry) { return entry.second->ops.empty(); });
  });
}

std::string EmulatedDevice::Fails(const char* what) {
  ++calls_;
  if (fail_in_ < 0 || fail_in_-- > 0) return "";
  return std::string(what) + ": made to fail";
}

std::string EmulatedDevice::FailsOn(void* stream, const char* what) {
  if (std::string wrong = Fails(what); !wrong.empty()) return wrong;
  Stream& at = At(stream);
  if (at.capture == nullptr) return "";
  at.spoilt = true;
  return std::string(what) + ": the stream is being captured";
}

EmulatedDevice::Stream& EmulatedDevice::At(void* stream) {
  std::unique_ptr<Stream>& at = streams_[stream];
  if (at == nullptr) at = std::make_unique<Stream>();
  return *at;
}

void EmulatedDevice::Queue(void* stream, std::function<void()> run) {
  if (At(stream).capture != nullptr) return At(stream).capture->push_back(std::move(run));
  At(stream).ops.push_back({std::move(run), nullptr, 0});
  SomeWork();
}

void EmulatedDevice::LetSomeIdle() {
  for (const auto& [handle, stream] : streams_) stream->lazy = random_() % 2 == 0;
}

void EmulatedDevice::SomeWork() {
  if (random_() % 128 == 0) LetSomeIdle();
  // Often nothing runs, so that much work is queued at a time.
  for (uint32_t steps = random_() % 4; steps > 1 && Step(); --steps) {
  }
}

bool EmulatedDevice::Step() {
  std::vector<Stream*> ready, lazy;
  for (const auto& [handle, stream] : streams_) {
    if (stream->ops.empty()) continue;
    const Op& op = stream->ops.front();
    if (op.awaited == nullptr || op.awaited->done >= op.version) {
      (stream->lazy ? lazy : ready).push_back(stream.get());
    }
  }
  if (ready.empty()) ready = lazy;
  if (ready.empty()) return false;
  Stream& chosen = *ready[random_() % ready.size()];
  const Op op = std::move(chosen.ops.front());
  chosen.ops.pop_front();
  if (!op.run || !failure_.empty()) return true;  // after a failure no work runs
  try {
    op.run();
  } catch (const std::exception& error) {
    failure_ = error.what();
  }
  return true;
}

std::string EmulatedDevice::RunUntil(const std::function<bool()>& done) {
  LetSomeIdle();
  while (!done()) {
    if (failure_.empty() && !Step()) failure_ = "streams wait for each other";
    if (!failure_.empty()) return failure_;
  }
  return failure_;
}

void* EmulatedDevice::Take(int64_t bytes) {
  bytes = RoundUp(Greatest<int64_t>(bytes, 1), 256);
  int64_t at = 256;
  for (const auto& [place, size] : taken_) {
    if (place - at >= bytes + 256) break;
    at = place + size + 256;
  }
  if (at + bytes > kArenaBytes) return nullptr;
  taken_[at] = bytes;
  held_ += bytes;
  ++allocations_;
  return arena_ + at;
}

int64_t EmulatedDevice::SizeOf(const void* data) const {
  const auto found = taken_.find(static_cast<const char*>(data) - arena_);
  if (found == taken_.end()) throw std::runtime_error("device memory that was never given out, or freed already");
  return found->second;
}

void EmulatedDevice::ExpectHeld(const void* data, int64_t bytes) const {
  const int64_t at = static_cast<const char*>(data) - arena_;
  const auto next = taken_.upper_bound(at);
  if (next == taken_.begin() || at + bytes > std::prev(next)->first + std::prev(next)->second) {
    throw std::runtime_error("a kernel or a copy uses device memory that was never given out, or is freed");
  }
}

void EmulatedDevice::ExpectHeld(const AttendProblem& problem, const AttendPlan& plan, const void* workspace) const {
  if (plan.workspace_bytes > 0) ExpectHeld(workspace, plan.workspace_bytes);
  ExpectHeld(problem.query_offsets, (problem.batch + 1) * 8);
  if (problem.top_k == 0) return;
  ExpectHeld(problem.memories, problem.batch * 8);
  for (int32_t i = 0; i < problem.batch; ++i) {
    ExpectHeld(problem.memories[i], sizeof(MemoryRows));
    const MemoryRows& rows = *problem.memories[i];
    if (rows.begin >= rows.end) continue;
    const int64_t all = problem.kv_heads * rows.capacity, each = ElementBytes(problem.memory_type);
    ExpectHeld(rows.keys, all * problem.key_dim * each);
    ExpectHeld(rows.values, all * problem.value_dim * each);
    if (problem.memory_type != DType::kI8) continue;
    ExpectHeld(rows.key_scales, all * 4);
    ExpectHeld(rows.value_scales, all * 4);
  }
}

void EmulatedDevice::GiveBack(void* data) {
  const int64_t bytes = SizeOf(data);
  {
    const Open open(arena_);
    std::memset(data, kNothing, static_cast<size_t>(bytes));
  }
  held_ -= bytes;
  taken_.erase(static_cast<char*>(data) - arena_);
}

class EmulatedRuntime final : public Runtime {
 public:
  explicit EmulatedRuntime(EmulatedDevice& device) : device_(device) {}

  std::string NewStream(void** stream) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.Fails("NewStream"); !wrong.empty()) return wrong;
    *stream = new char;
    device_.At(*stream);
    return "";
  }
  void DeleteStream(void* stream) override {
    const std::lock_guard lock(device_.mutex_);
    device_.At(stream).deleted = true;  // its handle is not used again, so that its work stays its own
  }
  std::string NewEvent(void** event) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.Fails("NewEvent"); !wrong.empty()) return wrong;
    *event = new char;
    device_.events_[*event] = std::make_unique<EmulatedDevice::Event>();
    return "";
  }
  void DeleteEvent(void*) override {}  // streams that wait for it still do
  std::string Record(void* event, void* stream) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.FailsOn(stream, "Record"); !wrong.empty()) return wrong;
    EmulatedDevice::Event* const at = device_.events_.at(event).get();
    const uint64_t version = ++at->recorded;
    device_.Queue(stream, [at, version] { at->done = std::max(at->done, version); });
    return "";
  }
  std::string Wait(void* stream, void* event) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.FailsOn(stream, "Wait"); !wrong.empty()) return wrong;
    EmulatedDevice::Event* const at = device_.events_.at(event).get();
    device_.At(stream).ops.push_back({nullptr, at, at->recorded});
    return "";
  }
  std::string Synchronise(void* event) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.Fails("Synchronise"); !wrong.empty()) return wrong;
    ++device_.synchronised_;
    const EmulatedDevice::Event* const at = device_.events_.at(event).get();
    const uint64_t version = at->recorded;
    return device_.RunUntil([=] { return at->done >= version; });
  }
  bool Done(void* event) override {
    const std::lock_guard lock(device_.mutex_);
    device_.SomeWork();
    const EmulatedDevice::Event& at = *device_.events_.at(event);
    return at.done >= at.recorded;
  }
  std::string IsCaptured(void* stream, bool* captured) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.Fails("IsCaptured"); !wrong.empty()) return wrong;
    *captured = device_.At(stream).capture != nullptr;
    return "";
  }
  std::string Allocate(int64_t bytes, void* stream, void** data) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.FailsOn(stream, "Allocate"); !wrong.empty()) return wrong;
    *data = device_.Take(bytes);
    if (*data == nullptr) return "Allocate: out of memory";
    device_.Queue(stream, [this, at = *data] {
      const Open open(device_.arena_);
      std::memset(at, kNothing, static_cast<size_t>(device_.SizeOf(at)));
    });
    return "";
  }
  void Free(void* data, void* stream) override {
    const std::lock_guard lock(device_.mutex_);
    if (device_.At(stream).capture != nullptr) device_.At(stream).spoilt = true;
    device_.Queue(stream, [this, data] { device_.GiveBack(data); });
  }
  std::string AllocateHost(int64_t bytes, void** data) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.Fails("AllocateHost"); !wrong.empty()) return wrong;
    *data = std::malloc(static_cast<size_t>(bytes));
    std::memset(*data, kNothing, static_cast<size_t>(bytes));
    return "";
  }
  void FreeHost(void* data) override {
    // As CUDA does: what reads or writes it comes to its end first.
    device_.Finish();
    std::free(data);
  }
  std::string Copy(const CopyShape& shape, void* stream) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.Fails("Copy"); !wrong.empty()) return wrong;
    if (shape.rows > 1 && (shape.bytes > shape.from_pitch || shape.bytes > shape.to_pitch)) {
      return "Copy: pitches less than a row";
    }
    device_.Queue(stream, [this, shape] {
      const Open open(device_.arena_);
      for (int64_t row = 0; row < shape.rows; ++row) {
        char* const to = static_cast<char*>(shape.to) + row * shape.to_pitch;
        const char* const from = static_cast<const char*>(shape.from) + row * shape.from_pitch;
        for (const char* const place : {static_cast<const char*>(to), from}) {
          if (place >= device_.arena_ && place < device_.arena_ + kArenaBytes) device_.ExpectHeld(place, shape.bytes);
        }
        std::memmove(to, from, static_cast<size_t>(shape.bytes));
      }
    });
    return "";
  }
  std::string Prepare(const AttendProblem& problem, const AttendBounds& bounds, AttendPlan* plan) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.Fails("Prepare"); !wrong.empty()) return wrong;
    if (std::string wrong = CheckProblem(problem, bounds); !wrong.empty()) return wrong;
    *plan = PlanAttend(problem, bounds, DeviceRoom{1 + static_cast<int64_t>(device_.random_() % 32)}, kSearchWarps);
    return "";
  }
  std::string Attend(const AttendProblem& problem, const AttendPlan& plan, void* workspace, void* stream) override {
    const std::lock_guard lock(device_.mutex_);
    if (std::string wrong = device_.Fails("Attend"); !wrong.empty()) {
      device_.At(stream).spoilt = true;
      return wrong;
    }
    if (std::string wrong = CheckProblem(problem, AttendBounds{}); !wrong.empty()) return wrong;
    if (plan.workspace_bytes > 0 && workspace == nullptr) return "workspace: expected device memory, got NULL";
    ++device_.attends_;
    const auto seed = static_cast<uint32_t>(device_.random_());
    device_.Queue(stream, [this, problem, plan, workspace, seed] {
      const Open open(device_.arena_);
      device_.ExpectHeld(problem, plan, workspace);
      if (workspace != nullptr) std::memset(workspace, kNothing, static_cast<size_t>(plan.workspace_bytes));
      EmulatedAttend<kSearchWarps, kFinishWarps>(problem, plan, workspace, seed);
    });
    return "";
  }

 private:
  EmulatedDevice& device_;
};

std::unique_ptr<Runtime> EmulatedDevice::NewRuntime() {
  return std::make_unique<EmulatedRuntime>(*this);
}

int32_t DeviceCount() {
  return EmulatedDevice::Get().present() ? 1 : 0;
}

std::string OpenRuntime(int32_t ordinal, std::unique_ptr<Runtime>* runtime) {
  if (DeviceCount() == 0) return "there is no CUDA device";
  if (ordinal != 0) return ArgumentError("ordinal", "0", int64_t{ordinal});
  *runtime = EmulatedDevice::Get().NewRuntime();
  return "";
}

}  // namespace mneme::cuda
