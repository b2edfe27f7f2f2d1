// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_ATTENTION_CUDA_EMULATOR_H_
#define MNEME_TESTS_ATTENTION_CUDA_EMULATOR_H_

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/cuda/element.h"

// Runs a kernel's body on the host. Each thread of a block is a coroutine with its own stack. Threads stop at every
// barrier, at every exchange within a warp, and sometimes at an atomic operation or a load; which warp and thread
// continues is random. So threads run as far apart as the code allows, and a missing barrier gives wrong results for
// some seed. Shared memory begins with random bytes.
//
// A run ends with std::runtime_error if threads wait at different barriers, if a thread misses a barrier, if some lane
// of a warp misses an exchange, or if a thread writes beyond shared memory.
namespace mneme::cuda {

// The threads of one block at a time.
class Emulator {
 public:
  Emulator(int warps, size_t shared_bytes, uint32_t seed);
  ~Emulator();
  Emulator(const Emulator&) = delete;
  Emulator& operator=(const Emulator&) = delete;

  // Runs body(thread) for every thread of a block, to the end.
  void Run(const std::function<void(int)>& body);

  char* shared() { return reinterpret_cast<char*>(shared_.data()); }
  std::mt19937& random() { return random_; }

  // From here on: called by the threads.
  enum class Meeting { kSync, kSyncOr, kWarpSync, kWarpSum, kShuffle, kMultiply };
  bool Sync(int thread, Meeting meeting, bool value);

  // The data that a lane gives to and gets from an exchange within its warp.
  struct Lane {
    uint64_t value;
    int mask;
    float c[4];
    uint32_t a[4], b[2];
  };
  // Waits for the warp; the last to come runs `exchange` over its lanes [32].
  Lane WarpMeet(int thread, Meeting meeting, const Lane& brought, void (*exchange)(Lane*));

  // A place where another thread may take over.
  void MayStop(int thread);

 private:
  enum class State { kReady, kAtBarrier, kAtWarp, kEnded };
  struct Thread;

  static void Entry(unsigned high, unsigned low);
  void Stop(int thread, State state);
  [[noreturn]] void Fail(int thread, const std::string& what);
  void CheckForDeadlock() const;

  const size_t shared_bytes_;
  std::mt19937 random_;
  std::vector<Vec16> shared_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Lane> lanes_;
  std::vector<int> waiting_lanes_;  // a warp
  int waiting_ = 0;                 // at the block's barrier
  bool any_ = false;
  bool any_before_ = false;
  const std::function<void(int)>* body_ = nullptr;
  ucontext_t scheduler_;
  std::string failure_;
};

// The block that the bodies see; the twin of DeviceBlock.
template <int kWarpCount>
class EmulatedBlock {
 public:
  static constexpr int kWarps = kWarpCount;
  static constexpr int kThreads = kWarps * kLanes;

  EmulatedBlock(Emulator& emulator, int thread, int64_t x, int64_t y, int64_t z)
      : emulator_(emulator), thread_(thread), x_(x), y_(y), z_(z) {}

  int thread() const { return thread_; }
  int warp() const { return thread_ / kLanes; }
  int lane() const { return thread_ % kLanes; }
  int64_t x() const { return x_; }
  int64_t y() const { return y_; }
  int64_t z() const { return z_; }
  char* shared() const { return emulator_.shared(); }

  void Sync() { emulator_.Sync(thread_, Emulator::Meeting::kSync, false); }
  bool SyncOr(bool value) { return emulator_.Sync(thread_, Emulator::Meeting::kSyncOr, value); }
  void WarpSync() {
    emulator_.WarpMeet(thread_, Emulator::Meeting::kWarpSync, {}, [](Emulator::Lane*) {});
  }

  uint32_t WarpSum(uint32_t value) {
    Emulator::Lane lane = {};
    lane.value = value;
    lane = emulator_.WarpMeet(thread_, Emulator::Meeting::kWarpSum, lane, [](Emulator::Lane* lanes) {
      uint32_t sum = 0;
      for (int i = 0; i < kLanes; ++i) sum += static_cast<uint32_t>(lanes[i].value);
      for (int i = 0; i < kLanes; ++i) lanes[i].value = sum;
    });
    return static_cast<uint32_t>(lane.value);
  }

  template <typename T>
  T ShuffleXor(T value, int mask) {
    static_assert(sizeof(T) <= 8);
    Emulator::Lane lane = {};
    std::memcpy(&lane.value, &value, sizeof(T));
    lane.mask = mask;
    lane = emulator_.WarpMeet(thread_, Emulator::Meeting::kShuffle, lane, [](Emulator::Lane* lanes) {
      uint64_t before[kLanes];
      for (int i = 0; i < kLanes; ++i) before[i] = lanes[i].value;
      for (int i = 0; i < kLanes; ++i) lanes[i].value = before[i ^ lanes[i].mask];
    });
    std::memcpy(&value, &lane.value, sizeof(T));
    return value;
  }

  uint32_t AtomicAdd(uint32_t* shared, uint32_t value) {
    emulator_.MayStop(thread_);
    const uint32_t before = *shared;
    *shared = before + value;
    emulator_.MayStop(thread_);
    return before;
  }

  Vec16 Load16(const void* data) { return Load<Vec16>(data); }
  Vec8 Load8(const void* data) { return Load<Vec8>(data); }
  Vec16 LoadStream16(const void* data) { return Load<Vec16>(data); }

  // By the layout of the PTX ISA, written down from there and not from the kernel.
  template <Product kProduct>
  void Multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Emulator::Lane lane = {};
    std::memcpy(lane.c, c, sizeof(c));
    std::memcpy(lane.a, a, sizeof(a));
    std::memcpy(lane.b, b, sizeof(b));
    lane = emulator_.WarpMeet(thread_, Emulator::Meeting::kMultiply, lane, [](Emulator::Lane* lanes) {
      float keys[16][16], queries[16][8];
      const auto half = [](uint32_t pair, int i) {
        const auto bits = static_cast<uint16_t>(pair >> (16 * i));
        return kProduct == Product::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
      };
      for (int l = 0; l < kLanes; ++l) {
        const int group = l >> 2, member = l % 4;
        for (int i = 0; i < 8; ++i) {
          const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
          const int column = member * 2 + (i & 1) + (i < 4 ? 0 : 8);
          keys[row][column] = half(lanes[l].a[i / 2], i & 1);
        }
        for (int i = 0; i < 4; ++i) {
          const int row = member * 2 + (i & 1) + (i < 2 ? 0 : 8);
          queries[row][group] = half(lanes[l].b[i / 2], i & 1);
        }
      }
      for (int l = 0; l < kLanes; ++l) {
        for (int i = 0; i < 4; ++i) {
          const int row = (l >> 2) + (i < 2 ? 0 : 8), column = (l % 4) * 2 + (i & 1);
          double sum = static_cast<double>(lanes[l].c[i]);
          for (int d = 0; d < 16; ++d) {
            sum += static_cast<double>(keys[row][d]) * static_cast<double>(queries[d][column]);
          }
          lanes[l].c[i] = static_cast<float>(sum);
        }
      }
    });
    std::memcpy(c, lane.c, sizeof(c));
  }

 private:
  template <typename T>
  T Load(const void* data) {
    if (reinterpret_cast<uintptr_t>(data) % alignof(T) != 0) throw std::runtime_error("a load that is not aligned");
    emulator_.MayStop(thread_);
    T value;
    std::memcpy(&value, data, sizeof(T));
    return value;
  }

  Emulator& emulator_;
  const int thread_;
  const int64_t x_, y_, z_;
};

// Runs kernel(block) for each thread of each block of a grid; the blocks one after the other, in random order.
template <int kWarps, class Kernel>
void RunGrid(int64_t x, int64_t y, int64_t z, int64_t shared_bytes, uint32_t seed, const Kernel& kernel) {
  Emulator emulator(kWarps, static_cast<size_t>(shared_bytes), seed);
  std::vector<int64_t> blocks(static_cast<size_t>(x * y * z));
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int64_t>(i);
  std::shuffle(blocks.begin(), blocks.end(), emulator.random());
  for (const int64_t at : blocks) {
    emulator.Run([&](int thread) {
      EmulatedBlock<kWarps> block(emulator, thread, at % x, at / x % y, at / x / y);
      kernel(block);
    });
  }
}

}  // namespace mneme::cuda

#endif  // MNEME_TESTS_ATTENTION_CUDA_EMULATOR_H_
