// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_HOST_DEVICE_H_
#define MNEME_ATTENTION_CUDA_HOST_DEVICE_H_

#include <cstdint>
#include <cstring>

#include <math.h>

// Kernel bodies are templates over a block of threads. nvcc compiles them for the device (device_block.cuh). The tests
// compile the same code for the host, where a block is emulated thread by thread.
//   MNEME_HOST_DEVICE   marks functions that the host calls, too
//   MNEME_DEVICE        marks functions that run within a block
#if defined(__CUDACC__)
#define MNEME_HOST_DEVICE __host__ __device__ __forceinline__
#define MNEME_DEVICE __device__ __forceinline__
#else
#define MNEME_HOST_DEVICE inline
#define MNEME_DEVICE inline
#endif

// Unrolls loops over register arrays: an array that is indexed by a variable would lie in memory.
#if defined(__CUDA_ARCH__)
#define MNEME_UNROLL _Pragma("unroll")
#else
#define MNEME_UNROLL
#endif

namespace mneme::cuda {

inline constexpr int kLanes = 32;

// The bytes that one thread moves at once.
struct alignas(16) Vec16 {
  uint32_t x[4];
};
struct alignas(8) Vec8 {
  uint32_t x[2];
};

MNEME_HOST_DEVICE uint32_t BitsOf(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

MNEME_HOST_DEVICE float FloatOf(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

MNEME_HOST_DEVICE float Infinity() {
  return FloatOf(0x7F800000u);
}

template <typename T>
MNEME_HOST_DEVICE T Least(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
MNEME_HOST_DEVICE T Greatest(T a, T b) {
  return a < b ? b : a;
}

MNEME_HOST_DEVICE int64_t CeilDivide(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
MNEME_HOST_DEVICE int64_t RoundUp(int64_t a, int64_t multiple) {
  return CeilDivide(a, multiple) * multiple;
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_HOST_DEVICE_H_
