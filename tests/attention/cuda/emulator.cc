// SPDX-License-Identifier: Apache-2.0
#include "tests/attention/cuda/emulator.h"

namespace mneme::cuda {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr size_t kGuard = 64;  // Vec16s behind shared memory
constexpr uint32_t kGuardWord = 0xA5C3E187u;

}  // namespace

struct Emulator::Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kReady;
  Meeting meeting = Meeting::kSync;
  int number = 0;
};

Emulator::Emulator(int warps, size_t shared_bytes, uint32_t seed)
    : shared_bytes_(shared_bytes),
      random_(seed),
      shared_((shared_bytes + sizeof(Vec16) - 1) / sizeof(Vec16) + kGuard),
      lanes_(static_cast<size_t>(warps * kLanes)),
      waiting_lanes_(static_cast<size_t>(warps)) {
  for (int i = 0; i < warps * kLanes; ++i) {
    threads_.push_back(std::make_unique<Thread>());
    threads_.back()->number = i;
  }
}

Emulator::~Emulator() = default;

void Emulator::Entry(unsigned high, unsigned low) {
  auto* const pointers = reinterpret_cast<std::pair<Emulator*, Thread*>*>(static_cast<uintptr_t>(high) << 32 | low);
  auto [emulator, thread] = *pointers;
  try {
    (*emulator->body_)(thread->number);
  } catch (const std::exception& error) {
    emulator->failure_ = "thread " + std::to_string(thread->number) + ": " + error.what();
  }
  emulator->Stop(thread->number, State::kEnded);
}

void Emulator::Run(const std::function<void(int)>& body) {
  body_ = &body;
  waiting_ = 0;
  any_ = false;
  failure_.clear();
  std::fill(waiting_lanes_.begin(), waiting_lanes_.end(), 0);
  for (Vec16& v : shared_) {
    for (uint32_t& x : v.x) x = static_cast<uint32_t>(random_());
  }
  char* const end = shared() + shared_bytes_;
  const size_t guard_words = (shared_.size() * sizeof(Vec16) - shared_bytes_) / sizeof(uint32_t);
  for (size_t i = 0; i < guard_words; ++i) std::memcpy(end + 4 * i, &kGuardWord, 4);

  std::vector<std::pair<Emulator*, Thread*>> entries;
  for (auto& thread : threads_) entries.emplace_back(this, thread.get());
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = *threads_[i];
    thread.state = State::kReady;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    const auto entry = reinterpret_cast<uintptr_t>(&entries[i]);
    makecontext(&thread.context, reinterpret_cast<void (*)()>(&Emulator::Entry), 2, static_cast<unsigned>(entry >> 32),
                static_cast<unsigned>(entry));
  }

  std::vector<int> warps, ready;
  for (;;) {
    warps.clear();
    bool ended = true;
    for (const auto& thread : threads_) {
      const int warp = thread->number / kLanes;
      if (thread->state == State::kReady && (warps.empty() || warps.back() != warp)) warps.push_back(warp);
      ended = ended && thread->state == State::kEnded;
    }
    if (ended) break;
    if (warps.empty()) CheckForDeadlock();
    // One warp goes ahead, its threads in random order, each to its next meeting.
    const int first = warps[random_() % warps.size()] * kLanes;
    ready.clear();
    for (int number = first; number < first + kLanes; ++number) {
      if (threads_[static_cast<size_t>(number)]->state == State::kReady) ready.push_back(number);
    }
    std::shuffle(ready.begin(), ready.end(), random_);
    for (const int number : ready) {
      swapcontext(&scheduler_, &threads_[static_cast<size_t>(number)]->context);
      if (!failure_.empty()) throw std::runtime_error(failure_);
    }
  }
  for (size_t i = 0; i < guard_words; ++i) {
    uint32_t word;
    std::memcpy(&word, end + 4 * i, 4);
    if (word != kGuardWord) throw std::runtime_error("a write " + std::to_string(4 * i) + " bytes past shared memory");
  }
}

void Emulator::Stop(int thread, State state) {
  Thread& self = *threads_[static_cast<size_t>(thread)];
  self.state = state;
  swapcontext(&self.context, &scheduler_);
}

void Emulator::Fail(int thread, const std::string& what) {
  failure_ = "thread " + std::to_string(thread) + ": " + what;
  for (;;) Stop(thread, State::kEnded);
}

void Emulator::CheckForDeadlock() const {
  std::string where;
  for (const auto& thread : threads_) {
    if (thread->number % kLanes != 0) continue;
    where += " thread " + std::to_string(thread->number) +
             (thread->state == State::kEnded       ? " has ended;"
              : thread->state == State::kAtBarrier ? " waits at the block's barrier;"
                                                   : " waits for its warp;");
  }
  throw std::runtime_error("the block is stuck:" + where);
}

bool Emulator::Sync(int thread, Meeting meeting, bool value) {
  Thread& self = *threads_[static_cast<size_t>(thread)];
  self.meeting = meeting;
  any_ = any_ || value;
  if (++waiting_ < static_cast<int>(threads_.size())) {
    Stop(thread, State::kAtBarrier);
    return any_before_;
  }
  for (const auto& other : threads_) {
    if (other->meeting != meeting) Fail(thread, "threads wait at different barriers");
  }
  for (const auto& other : threads_) other->state = State::kReady;
  waiting_ = 0;
  any_before_ = any_;
  any_ = false;
  Stop(thread, State::kReady);
  return any_before_;
}

Emulator::Lane Emulator::WarpMeet(int thread, Meeting meeting, const Lane& brought, void (*exchange)(Lane*)) {
  const int first = thread / kLanes * kLanes;
  Lane* const lanes = lanes_.data() + first;
  lanes[thread - first] = brought;
  threads_[static_cast<size_t>(thread)]->meeting = meeting;
  int& waiting = waiting_lanes_[static_cast<size_t>(thread / kLanes)];
  if (++waiting < kLanes) {
    Stop(thread, State::kAtWarp);
    return lanes[thread - first];
  }
  for (int i = 0; i < kLanes; ++i) {
    Thread& other = *threads_[static_cast<size_t>(first + i)];
    if (other.meeting != meeting) Fail(thread, "lanes of a warp came to different exchanges");
    other.state = State::kReady;
  }
  waiting = 0;
  exchange(lanes);
  Stop(thread, State::kReady);
  return lanes[thread - first];
}

void Emulator::MayStop(int thread) {
  if (random_() % 32 == 0) Stop(thread, State::kReady);
}

}  // namespace mneme::cuda
