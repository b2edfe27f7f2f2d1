// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_DEVICE_BLOCK_CUH_
#define MNEME_ATTENTION_CUDA_DEVICE_BLOCK_CUH_

#include "attention/cuda/element.h"

namespace mneme::cuda {

// A block of threads on the device: everything that kernel bodies need of CUDA. The tests have another class with the
// same members (tests/attention/cuda/emulator.h), which runs the same bodies on the host.
//   Sync, SyncOr      all threads of the block; SyncOr: whether any thread's argument was true
//   WarpSync, WarpSum, ShuffleXor, Multiply    all lanes of a warp together
template <int kWarpCount>
class DeviceBlock {
 public:
  static constexpr int kWarps = kWarpCount;
  static constexpr int kThreads = kWarps * kLanes;

  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int warp() const { return static_cast<int>(threadIdx.x / kLanes); }
  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x % kLanes); }
  __device__ __forceinline__ int64_t x() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t y() const { return blockIdx.y; }
  __device__ __forceinline__ int64_t z() const { return blockIdx.z; }

  // Dynamic shared memory, aligned to 16 bytes.
  __device__ __forceinline__ char* shared() const {
    extern __shared__ Vec16 mneme_shared[];
    return reinterpret_cast<char*>(mneme_shared);
  }

  __device__ __forceinline__ void Sync() const { __syncthreads(); }
  __device__ __forceinline__ bool SyncOr(bool value) const { return __syncthreads_or(value) != 0; }
  __device__ __forceinline__ void WarpSync() const { __syncwarp(); }
  __device__ __forceinline__ uint32_t WarpSum(uint32_t value) const { return __reduce_add_sync(kAll, value); }
  template <typename T>
  __device__ __forceinline__ T ShuffleXor(T value, int mask) const {
    return __shfl_xor_sync(kAll, value, mask);
  }
  __device__ __forceinline__ uint32_t AtomicAdd(uint32_t* shared, uint32_t value) const {
    return atomicAdd(shared, value);
  }

  __device__ __forceinline__ Vec16 Load16(const void* data) const { return *static_cast<const Vec16*>(data); }
  __device__ __forceinline__ Vec8 Load8(const void* data) const { return *static_cast<const Vec8*>(data); }
  // Loads rows that are read once, bypassing the first-level cache. Requires: nothing writes them while the kernel
  // runs.
  __device__ __forceinline__ Vec16 LoadStream16(const void* data) const {
    Vec16 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
                 : "l"(data));
    return v;
  }

  // c += a * b by the whole warp: a is 16 x 16, b is 16 x 8.
  template <Product kProduct>
  __device__ __forceinline__ void Multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
    if constexpr (kProduct == Product::kF16) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }

 private:
  static constexpr unsigned kAll = 0xFFFFFFFFu;
};

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_DEVICE_BLOCK_CUH_
