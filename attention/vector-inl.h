// SPDX-License-Identifier: Apache-2.0
// The vectors of one instruction set and the functions that the attention kernels need (docs/design/kernels.md). The
// including file defines MNEME_LANES: 4, 8 or 16 floats in a vector. They are GCC's and Clang's vector extensions,
// which work on every architecture. Intrinsics are used only to convert elements, for which GCC 12 makes scalar code.

#ifndef MNEME_ATTENTION_VECTOR_INL_H_
#define MNEME_ATTENTION_VECTOR_INL_H_

#include <stdint.h>

#include "base/inline.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace mneme {
namespace {

constexpr int64_t kLanes = MNEME_LANES;

typedef float Floats __attribute__((vector_size(4 * MNEME_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * MNEME_LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * MNEME_LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * MNEME_LANES)));
typedef int8_t Bytes __attribute__((vector_size(MNEME_LANES)));
typedef float FourFloats __attribute__((vector_size(16)));

constexpr float kInfinity = __builtin_inff();

template <typename Vector>
MNEME_INLINE Vector LoadVector(const void* source) {
  Vector vector;
  __builtin_memcpy(&vector, source, sizeof(vector));
  return vector;
}

MNEME_INLINE Floats Load(const float* source) {
  return LoadVector<Floats>(source);
}
MNEME_INLINE void Store(Floats vector, float* destination) {
  __builtin_memcpy(destination, &vector, sizeof(vector));
}

// Written out, because compilers keep the addition in `Floats{} + x` (it matters for -0).
MNEME_INLINE Floats Broadcast(float x) {
#if MNEME_LANES == 4
  return Floats{x, x, x, x};
#elif MNEME_LANES == 8
  return Floats{x, x, x, x, x, x, x, x};
#else
  return Floats{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#endif
}

MNEME_INLINE Floats Select(Ints condition, Floats yes, Floats no) {
  return (Floats)((condition & (Ints)yes) | (~condition & (Ints)no));
}
// a where a > b, else b; so b where a is NaN. Written this way it is one instruction.
MNEME_INLINE Floats Max(Floats a, Floats b) {
  return a > b ? a : b;
}

// How the kernels read each element type. kBytes: bytes of an element. Widen: converts kLanes elements to f32, exactly.
struct F32Element {
  static constexpr int64_t kBytes = 4;
  static MNEME_INLINE Floats Widen(const char* source) { return LoadVector<Floats>(source); }
};

struct F16Element {
  static constexpr int64_t kBytes = 2;
  static MNEME_INLINE Floats Widen(const char* source) {
#if MNEME_LANES == 16 && defined(__AVX512F__)
    return (Floats)_mm512_maskz_cvtph_ps(0xffff, LoadVector<__m256i>(source));
#elif MNEME_LANES == 8 && defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(LoadVector<__m128i>(source));
#else
    // Shifted into place, an f16 is an f32 whose exponent is 112 too small. The product corrects that, for subnormal
    // numbers too. Infinity and NaN then get an f32's exponent of all ones.
    const Words wide = __builtin_convertvector(LoadVector<Halves>(source), Words);
    const Words magnitude = (wide & 0x7fffu) << 13;
    const Words special = (Words)(magnitude >= 0x7c00u << 13) & 0x7f800000u;
    const Words sign = (wide & 0x8000u) << 16;
    return (Floats)((Words)((Floats)magnitude * 0x1p112f) | special | sign);
#endif
  }
};

struct BF16Element {
  static constexpr int64_t kBytes = 2;
  static MNEME_INLINE Floats Widen(const char* source) {
#if MNEME_LANES == 16 && defined(__AVX512F__)
    return (Floats)((Words)_mm512_maskz_cvtepu16_epi32(0xffff, LoadVector<__m256i>(source)) << 16);
#elif MNEME_LANES == 8 && defined(__AVX2__)
    return (Floats)((Words)_mm256_cvtepu16_epi32(LoadVector<__m128i>(source)) << 16);
#else
    return (Floats)(__builtin_convertvector(LoadVector<Halves>(source), Words) << 16);
#endif
  }
};

// The bytes of an i8 row; the row's scale is applied elsewhere.
struct I8Element {
  static constexpr int64_t kBytes = 1;
  static MNEME_INLINE Floats Widen(const char* source) {
#if MNEME_LANES == 16 && defined(__AVX512F__)
    const Ints wide = (Ints)_mm512_maskz_cvtepi8_epi32(0xffff, LoadVector<__m128i>(source));
#elif MNEME_LANES == 8 && defined(__AVX2__)
    const Ints wide = (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source)));
#else
    const Ints wide = __builtin_convertvector(LoadVector<Bytes>(source), Ints);
#endif
    return __builtin_convertvector(wide, Floats);
  }
};

// The first n < kLanes elements at `source`, followed by zeros.
template <typename Element>
MNEME_INLINE Floats WidenTail(const char* source, int64_t n) {
  alignas(16) char tail[kLanes * 4] = {};
  for (int64_t i = 0; i < n * Element::kBytes; ++i) tail[i] = source[i];
  return Element::Widen(tail);
}

#if MNEME_LANES == 4
MNEME_INLINE FourFloats AddQuarters(Floats x) {
  return x;
}
MNEME_INLINE Floats UnpackLow(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
MNEME_INLINE Floats UnpackHigh(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
MNEME_INLINE Floats JoinLow(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 1, 4, 5);
}
MNEME_INLINE Floats JoinHigh(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 2, 3, 6, 7);
}
MNEME_INLINE FourFloats MaxQuarters(Floats x) {
  return x;
}
#elif MNEME_LANES == 8
MNEME_INLINE FourFloats LowQuarter(Floats x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3);
}
MNEME_INLINE FourFloats HighQuarter(Floats x) {
  return __builtin_shufflevector(x, x, 4, 5, 6, 7);
}
MNEME_INLINE FourFloats AddQuarters(Floats x) {
  return LowQuarter(x) + HighQuarter(x);
}
MNEME_INLINE Floats UnpackLow(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
}
MNEME_INLINE Floats UnpackHigh(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
MNEME_INLINE Floats JoinLow(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
}
MNEME_INLINE Floats JoinHigh(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
#elif MNEME_LANES == 16
typedef float EightFloats __attribute__((vector_size(32)));
MNEME_INLINE EightFloats LowHalf(Floats x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
}
MNEME_INLINE EightFloats HighHalf(Floats x) {
  return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
}
MNEME_INLINE FourFloats LowQuarter(EightFloats x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3);
}
MNEME_INLINE FourFloats HighQuarter(EightFloats x) {
  return __builtin_shufflevector(x, x, 4, 5, 6, 7);
}
MNEME_INLINE FourFloats AddQuarters(Floats x) {
  const EightFloats half = LowHalf(x) + HighHalf(x);
  return LowQuarter(half) + HighQuarter(half);
}
MNEME_INLINE Floats UnpackLow(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
MNEME_INLINE Floats UnpackHigh(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
MNEME_INLINE Floats JoinLow(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
MNEME_INLINE Floats JoinHigh(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
#endif

// Lane i of the result is the sum of the lanes of vector i of the four.
MNEME_INLINE FourFloats SumsOf(Floats a, Floats b, Floats c, Floats d) {
  const Floats ab = UnpackLow(a, b) + UnpackHigh(a, b);
  const Floats cd = UnpackLow(c, d) + UnpackHigh(c, d);
  return AddQuarters(JoinLow(ab, cd) + JoinHigh(ab, cd));
}

MNEME_INLINE float SumLanes(Floats x) {
  const FourFloats four = AddQuarters(x);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

MNEME_INLINE float MaxLanes(Floats x) {
#if MNEME_LANES == 16
  x = Max(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = Max(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
#elif MNEME_LANES == 8
  x = Max(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
#endif
  const float a = x[0] > x[1] ? x[0] : x[1];
  const float b = x[2] > x[3] ? x[2] : x[3];
  return a > b ? a : b;
}

// exp(x) within 2 ulp for x in [-87.33, 88]; 0 below that, where results would be subnormal; NaN for NaN. Cody and
// Waite's reduction and the polynomial of Cephes' expf. Requires: no x is above 88.
MNEME_INLINE Floats Exp(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  const Floats shifted = x * 1.44269504088896341f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = Broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Floats square = r * r;
  p = p * square + r;
  p = p + 1.0f;
  // 2^n, made of n in the low bits. A product with p, not an addition to p's exponent, keeps NaN.
  const Floats power = (Floats)(((Words)shifted + 127u) << 23);
  return Select(x < -87.33f, Floats{}, p * power);
}

// tanh(x) within a few ulp, as in Cephes' tanhf; NaN for NaN.
MNEME_INLINE Floats Tanh(Floats x) {
  const Ints sign = (Ints)x & INT32_MIN;
  const Floats magnitude = (Floats)((Ints)x & INT32_MAX);
  const Floats clamped = Select(magnitude > 20.0f, Broadcast(20.0f), magnitude);
  const Floats large = 1.0f - 2.0f / (Exp(clamped + clamped) + 1.0f);
  const Floats square = clamped * clamped;
  Floats p = Broadcast(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  p = p * square;
  const Floats small = p * clamped + clamped;
  return (Floats)((Ints)Select(clamped < 0.625f, small, large) | sign);
}

// AttendKernels::exp.
void ExpOfAll(const float* x, int64_t n, float* result) {
  for (int64_t i = 0; i < n; i += kLanes) Store(Exp(Load(x + i)), result + i);
}

}  // namespace
}  // namespace mneme

#endif  // MNEME_ATTENTION_VECTOR_INL_H_
