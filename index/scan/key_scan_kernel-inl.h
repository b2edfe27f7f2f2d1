// SPDX-License-Identifier: Apache-2.0
// The scan over keys, compiled once for each instruction set (docs/design/kernels.md). The including file defines, in
// an anonymous namespace within mneme::key_scan:
//
//   Vec                          a vector of kWidth floats; kWidth divides kLanes
//   Splat(float)                 the value in every lane
//   MulAdd(a, b, c)              a * b + c: fused always, or never
//   AtLeast(a, b)                bit i: a[i] >= b[i]; 0 for NaN
//   kTile, TransposeTile<dtype>(rows, d, columns)
//                                elements d … d + kTile - 1 of kTile rows, as f32:
//                                columns[i * kLanes + r] = element d + i of rows[r]
//   kHasDirectDot, DirectDot<dtype>(rows, dim, query, dots)
//                                if true: the dot products of kLanes rows without storing columns; dim is a multiple of
//                                kTile, and the scales of i8 rows are not applied
//   kGroupQueries                the most queries whose accumulators fit the registers
//
// Results do not depend on tiling: each lane of an accumulator starts at 0 and takes one MulAdd for each dimension, in
// order, whatever queries and rows are computed beside it.

namespace mneme::key_scan {
namespace {

constexpr int kParts = kLanes / kWidth;

constexpr int64_t ElementBytes(DType dtype) {
  return dtype == DType::kF32 ? 4 : dtype == DType::kI8 ? 1 : 2;
}

MNEME_INLINE Vec LoadVec(const float* from) {
  Vec values;
  __builtin_memcpy(&values, from, sizeof(values));
  return values;
}

// Writes kLanes encoded rows, anywhere in RAM, as columns: [dim][kLanes], then the kLanes scales (1 unless i8).
template <DType kDType>
MNEME_INLINE void TransposeRows(const char* const* rows, int64_t dim, float* columns) {
  constexpr int64_t kBytes = ElementBytes(kDType);
  int64_t d = 0;
  for (; d + kTile <= dim; d += kTile) {
    for (int r = 0; r < kLanes; r += kTile) TransposeTile<kDType>(rows + r, d, columns + d * kLanes + r);
  }
  if (d < dim) {
    // The last elements of each row, followed by zeros.
    char rest[kLanes][kTile * 4] = {};
    const char* rests[kLanes];
    float rest_columns[kTile * kLanes];
    for (int r = 0; r < kLanes; ++r) {
      __builtin_memcpy(rest[r], rows[r] + d * kBytes, static_cast<size_t>((dim - d) * kBytes));
      rests[r] = rest[r];
    }
    for (int r = 0; r < kLanes; r += kTile) TransposeTile<kDType>(rests + r, 0, rest_columns + r);
    __builtin_memcpy(columns + d * kLanes, rest_columns, static_cast<size_t>((dim - d) * kLanes) * sizeof(float));
  }
  for (int r = 0; r < kLanes; ++r) {
    if constexpr (kDType == DType::kI8) {
      __builtin_memcpy(columns + dim * kLanes + r, rows[r] + dim, sizeof(float));
    } else {
      columns[dim * kLanes + r] = 1.0f;
    }
  }
}

// The dot products of kQ queries with the kLanes rows in `columns`. All accumulators are in registers.
template <DType kDType, int kQ>
MNEME_INLINE void DotColumns(const float* columns, int64_t dim, const float* const* queries, Vec (&dots)[kQ][kParts]) {
  const float* query[kQ];
  for (int q = 0; q < kQ; ++q) {
    for (int p = 0; p < kParts; ++p) dots[q][p] = Splat(0.0f);
    query[q] = queries[q];
  }
  for (int64_t d = 0; d < dim; ++d) {
    Vec keys[kParts];
    for (int p = 0; p < kParts; ++p) keys[p] = LoadVec(columns + d * kLanes + p * kWidth);
    for (int q = 0; q < kQ; ++q) {
      const Vec value = Splat(query[q][d]);
      for (int p = 0; p < kParts; ++p) dots[q][p] = MulAdd(keys[p], value, dots[q][p]);
    }
  }
  if constexpr (kDType == DType::kI8) {
    for (int q = 0; q < kQ; ++q) {
      for (int p = 0; p < kParts; ++p) dots[q][p] = dots[q][p] * LoadVec(columns + dim * kLanes + p * kWidth);
    }
  }
}

// The part of RankRows that few rows need: applies the soft cap and the decay, and delivers hits. `scaled` is
// overwritten.
MNEME_NOINLINE void RankScaledRows(Query& query, int64_t number, Vec (&scaled)[kParts], int64_t first_row,
                                   uint32_t lanes, HitCallback on_hits, void* context) {
  if (query.soft_cap > 0) {
    uint32_t possible = 0;
    for (int p = 0; p < kParts; ++p) possible |= AtLeast(scaled[p], Splat(query.min_scaled_dot)) << (p * kWidth);
    if ((possible & lanes) == 0) return;
    for (int p = 0; p < kParts; ++p) {
      for (int i = 0; i < kWidth; ++i) {
        scaled[p][i] = query.soft_cap * __builtin_tanhf(scaled[p][i] / query.soft_cap);
      }
    }
  }
  Vec(&logits)[kParts] = scaled;
  for (int p = 0; p < kParts; ++p) logits[p] = logits[p] + Splat(query.addend);
  if (query.decay != 0) {
    if (lanes == 0xffffu) {
      for (int p = 0; p < kParts; ++p) {
        const Vec penalty = LoadVec(query.row_penalty + first_row + p * kWidth);
        logits[p] = logits[p] - Splat(query.decay) * penalty;
      }
    } else {
      // Only rows of the range have a penalty.
      for (int i = 0; i < kLanes; ++i) {
        if (lanes >> i & 1u) logits[i / kWidth][i % kWidth] -= query.decay * query.row_penalty[first_row + i];
      }
    }
  }
  uint32_t hits = 0;
  for (int p = 0; p < kParts; ++p) hits |= AtLeast(logits[p], Splat(query.threshold)) << (p * kWidth);
  hits &= lanes;
  if (hits == 0) return;
  float values[kLanes];
  __builtin_memcpy(values, logits, sizeof(values));
  on_hits(context, query, {.query = number, .first_row = first_row, .logits = values, .lanes = hits});
}

// Ranks kLanes rows for query `number` by their dot products, and delivers those that reach its threshold.
// lanes: the lanes that hold rows.
MNEME_INLINE void RankRows(Query& query, int64_t number, const Vec (&dots)[kParts], int64_t first_row, uint32_t lanes,
                           HitCallback on_hits, void* context) {
  Vec scaled[kParts];
  for (int p = 0; p < kParts; ++p) scaled[p] = dots[p] * Splat(query.scale);
  if (__builtin_expect(!query.affine, 0)) {
    return RankScaledRows(query, number, scaled, first_row, lanes, on_hits, context);
  }
  uint32_t hits = 0;
  for (int p = 0; p < kParts; ++p) {
    hits |= AtLeast(scaled[p] + Splat(query.addend), Splat(query.threshold)) << (p * kWidth);
  }
  if (__builtin_expect((hits & lanes) != 0, 0)) {
    RankScaledRows(query, number, scaled, first_row, lanes, on_hits, context);
  }
}

// Compares queries first … first + kQ - 1 with the kLanes rows in `columns`.
template <DType kDType, int kQ>
MNEME_INLINE void ScanColumns(const float* columns, int64_t dim, Query* queries, int64_t first, int64_t first_row,
                              uint32_t lanes, HitCallback on_hits, void* context) {
  const float* values[kQ];
  for (int q = 0; q < kQ; ++q) values[q] = queries[first + q].values;
  Vec dots[kQ][kParts];
  DotColumns<kDType, kQ>(columns, dim, values, dots);
  for (int q = 0; q < kQ; ++q) RankRows(queries[first + q], first + q, dots[q], first_row, lanes, on_hits, context);
}

// The same for n <= kGroupQueries queries.
template <DType kDType>
MNEME_INLINE void ScanGroup(const float* columns, int64_t dim, Query* queries, int64_t first, int64_t n,
                            int64_t first_row, uint32_t lanes, HitCallback on_hits, void* context) {
  static_assert(kGroupQueries <= 8);
#define MNEME_CASE(kQ)                                                                           \
  case kQ:                                                                                       \
    if constexpr (kQ <= kGroupQueries) {                                                         \
      ScanColumns<kDType, kQ>(columns, dim, queries, first, first_row, lanes, on_hits, context); \
    }                                                                                            \
    return;
  switch (n) {
    MNEME_CASE(1)
    MNEME_CASE(2)
    MNEME_CASE(3)
    MNEME_CASE(4)
    MNEME_CASE(5)
    MNEME_CASE(6)
    MNEME_CASE(7)
    MNEME_CASE(8)
  }
#undef MNEME_CASE
}

// Each kLanes rows are transposed once and stay in the first-level cache while all queries are compared with them.
template <DType kDType>
void ScanRows(const Rows& rows, Query* queries, int64_t count, float* columns, HitCallback on_hits, void* context) {
  const int64_t groups = (count + kGroupQueries - 1) / kGroupQueries;
  for (int64_t row = 0; row < rows.count; row += kLanes) {
    const int64_t n = rows.count - row < kLanes ? rows.count - row : kLanes;
    const char* addresses[kLanes];
    // Lanes without a row repeat the last one; `lanes` masks them out.
    for (int64_t r = 0; r < kLanes; ++r) addresses[r] = rows.data + (row + (r < n ? r : n - 1)) * rows.row_bytes;
    TransposeRows<kDType>(addresses, rows.dim, columns);
    const uint32_t lanes = (1u << n) - 1u;
    int64_t first = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t size = (count - first + groups - g - 1) / (groups - g);
      ScanGroup<kDType>(columns, rows.dim, queries, first, size, rows.first_row + row, lanes, on_hits, context);
      first += size;
    }
  }
}

// Kernels::scan.
void Scan(const Rows& rows, Query* queries, int64_t count, float* columns, HitCallback on_hits, void* context) {
  switch (rows.dtype) {
    case DType::kF32: return ScanRows<DType::kF32>(rows, queries, count, columns, on_hits, context);
    case DType::kF16: return ScanRows<DType::kF16>(rows, queries, count, columns, on_hits, context);
    case DType::kBF16: return ScanRows<DType::kBF16>(rows, queries, count, columns, on_hits, context);
    case DType::kI8: return ScanRows<DType::kI8>(rows, queries, count, columns, on_hits, context);
  }
}

template <DType kDType>
void DotRows(int64_t dim, const char* const* rows, const float* query, float* columns, float* dots) {
  if constexpr (kHasDirectDot) {
    if (dim % kTile == 0) {
      DirectDot<kDType>(rows, dim, query, dots);
      if constexpr (kDType == DType::kI8) {
        for (int r = 0; r < kLanes; ++r) {
          float scale;
          __builtin_memcpy(&scale, rows[r] + dim, sizeof(scale));
          dots[r] *= scale;
        }
      }
      return;
    }
  }
  TransposeRows<kDType>(rows, dim, columns);
  Vec sums[1][kParts];
  DotColumns<kDType, 1>(columns, dim, &query, sums);
  for (int p = 0; p < kParts; ++p) __builtin_memcpy(dots + p * kWidth, &sums[0][p], sizeof(Vec));
}

// Kernels::dot.
void Dot(DType dtype, int64_t dim, const char* const* rows, const float* query, float* columns, float* dots) {
  switch (dtype) {
    case DType::kF32: return DotRows<DType::kF32>(dim, rows, query, columns, dots);
    case DType::kF16: return DotRows<DType::kF16>(dim, rows, query, columns, dots);
    case DType::kBF16: return DotRows<DType::kBF16>(dim, rows, query, columns, dots);
    case DType::kI8: return DotRows<DType::kI8>(dim, rows, query, columns, dots);
  }
}

}  // namespace
}  // namespace mneme::key_scan
