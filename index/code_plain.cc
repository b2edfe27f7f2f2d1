// The scan over codes for any CPU: vectors of four, which every compiler knows how to make.

#include "index/code_kernel.h"

namespace mneme::codes {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));

constexpr int kWidth = 4;
constexpr int kParts = kBlockRows / kWidth;
constexpr int kQueries = 1;

inline Floats Splat(float value) { return Floats{value, value, value, value}; }
inline Ints SplatInt(int32_t value) { return Ints{value, value, value, value}; }
inline Floats LoadFloats(const char* from) {
  Floats values;
  __builtin_memcpy(&values, from, sizeof(values));
  return values;
}
inline Ints LoadInts(const char* from) {
  Ints values;
  __builtin_memcpy(&values, from, sizeof(values));
  return values;
}
inline Floats ToFloats(Ints values) { return __builtin_convertvector(values, Floats); }
inline Floats AsFloats(Ints bits) { return reinterpret_cast<Floats>(bits); }
inline Ints ShiftUp16(Ints bits) { return reinterpret_cast<Ints>(reinterpret_cast<Bits>(bits) << 16); }
inline Ints UpperHalf(Ints bits) { return reinterpret_cast<Ints>(reinterpret_cast<Bits>(bits) & 0xffff0000u); }
inline Floats MulAdd(Floats a, Floats b, Floats c) { return a * b + c; }
inline uint32_t Below(Floats a, Floats b) {
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= static_cast<uint32_t>(a[i] < b[i]) << i;
  return bits;
}

inline bool AnyAbove(const Ints (&sums)[kParts], int32_t least) {
  Ints above = {};
  for (int p = 0; p < kParts; ++p) above |= sums[p] > Ints{least, least, least, least};
  return (above[0] | above[1] | above[2] | above[3]) != 0;
}

template <int kQ>
inline void DotBlock(const uint8_t* codes, int64_t dim, const int8_t* values, Ints (&sums)[kQ][kParts]) {
  for (int q = 0; q < kQ; ++q) {
    int32_t dots[kBlockRows];
    __builtin_memcpy(dots, sums[q], sizeof(dots));
    for (int64_t d = 0; d < dim; d += 4) {
      const int8_t* four = values + (d / 8 * kQ + q) * 8 + d % 8;
      const uint8_t* keys = codes + d * kBlockRows;
      for (int r = 0; r < kBlockRows; ++r) {
        dots[r] += keys[4 * r] * four[0] + keys[4 * r + 1] * four[1] + keys[4 * r + 2] * four[2] +
                   keys[4 * r + 3] * four[3];
      }
    }
    __builtin_memcpy(sums[q], dots, sizeof(dots));
  }
}

}  // namespace
}  // namespace mneme::codes

#include "index/code_kernel.inc"

namespace mneme::codes {

const Kernels kPlainKernels = {"plain", 127, kQueries, &Scan};

}  // namespace mneme::codes
