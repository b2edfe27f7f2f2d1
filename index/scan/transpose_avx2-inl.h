// SPDX-License-Identifier: Apache-2.0
// TransposeTile and DirectDot of key_scan_kernel-inl.h for CPUs with AVX2 and F16C; the AVX-512 kernels use them, too.

namespace mneme::key_scan {
namespace {

constexpr int kTile = 8;

template <DType kDType>
MNEME_INLINE __m256 LoadEight(const char* elements, int64_t i) {
  if constexpr (kDType == DType::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(elements) + i);
  } else if constexpr (kDType == DType::kF16) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(elements + 2 * i)));
  } else if constexpr (kDType == DType::kBF16) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(elements + 2 * i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  } else {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(elements + i));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
  }
}

// Elements d … d + 7 of eight rows as f32: columns[i] is element d + i of all of them.
template <DType kDType>
MNEME_INLINE void LoadColumns(const char* const* rows, int64_t d, __m256 (&columns)[8]) {
  __m256 a[8], b[8];
  for (int r = 0; r < 8; ++r) a[r] = LoadEight<kDType>(rows[r], d);
  // Interleaves pairs of rows, then fours within each half of a register, then swaps halves.
  for (int r = 0; r < 8; r += 2) {
    b[r] = _mm256_unpacklo_ps(a[r], a[r + 1]);
    b[r + 1] = _mm256_unpackhi_ps(a[r], a[r + 1]);
  }
  for (int r = 0; r < 8; r += 4) {
    a[r] = _mm256_shuffle_ps(b[r], b[r + 2], 0x44);
    a[r + 1] = _mm256_shuffle_ps(b[r], b[r + 2], 0xee);
    a[r + 2] = _mm256_shuffle_ps(b[r + 1], b[r + 3], 0x44);
    a[r + 3] = _mm256_shuffle_ps(b[r + 1], b[r + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    columns[i] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
    columns[i + 4] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
  }
}

template <DType kDType>
MNEME_INLINE void TransposeTile(const char* const* rows, int64_t d, float* columns) {
  __m256 column[8];
  LoadColumns<kDType>(rows, d, column);
  for (int i = 0; i < 8; ++i) _mm256_storeu_ps(columns + i * kLanes, column[i]);
}

// For a single query, columns need not be stored: each tile is multiplied as soon as it is transposed.
constexpr bool kHasDirectDot = true;

template <DType kDType>
MNEME_INLINE void DirectDot(const char* const* rows, int64_t dim, const float* query, float* dots) {
  __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
  for (int64_t d = 0; d < dim; d += kTile) {
    __m256 first[8], second[8];
    LoadColumns<kDType>(rows, d, first);
    LoadColumns<kDType>(rows + 8, d, second);
    for (int i = 0; i < 8; ++i) {
      const __m256 value = _mm256_set1_ps(query[d + i]);
      low = _mm256_fmadd_ps(first[i], value, low);
      high = _mm256_fmadd_ps(second[i], value, high);
    }
  }
  _mm256_storeu_ps(dots, low);
  _mm256_storeu_ps(dots + 8, high);
}

}  // namespace
}  // namespace mneme::key_scan
