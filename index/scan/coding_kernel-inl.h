// SPDX-License-Identifier: Apache-2.0
// The kernels that make codes, compiled once for each instruction set (docs/design/kernels.md). The including file
// defines, in an anonymous namespace within mneme::codes:
//
//   Floats, Ints     vectors of f32 and int32_t, in the compiler's own notation
//   Transpose(v)     transposes in place as many vectors as a vector has lanes
//
// Sixteen rows are transposed to columns: each column holds one dimension of all rows. Everything after that is the
// same arithmetic in each lane.

namespace mneme::codes {
namespace {

typedef float FourFloats __attribute__((vector_size(16)));

constexpr int kWidth = sizeof(Floats) / sizeof(float);

MNEME_INLINE Floats Load(const float* from) {
  Floats vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}
MNEME_INLINE void Store(Floats vector, float* to) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}

// CodingKernels::add_rows.
void AddRows(const float* rows, int64_t count, int64_t dim, float* sums) {
  constexpr int64_t kTile = 4 * kWidth;  // these sums stay in registers while all rows are added
  int64_t d = 0;
  for (; d + kTile <= dim; d += kTile) {
    Floats sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = Load(sums + d + i * kWidth);
    for (int64_t row = 0; row < count; ++row) {
      for (int i = 0; i < 4; ++i) sum[i] += Load(rows + row * dim + d + i * kWidth);
    }
    for (int i = 0; i < 4; ++i) Store(sum[i], sums + d + i * kWidth);
  }
  for (; d < dim; d += kWidth) {
    Floats sum = Load(sums + d);
    for (int64_t row = 0; row < count; ++row) sum += Load(rows + row * dim + d);
    Store(sum, sums + d);
  }
}

// columns [coded_dim][kBlockRows] = the transpose of (rows - mean) * weights.
MNEME_INLINE void CentreAndTranspose(const float* rows, const float* mean, const float* weights, int64_t coded_dim,
                                     float* columns) {
  for (int64_t d = 0; d < coded_dim; d += kWidth) {
    const Floats less = Load(mean + d), weight = Load(weights + d);
    for (int64_t r = 0; r < kBlockRows; r += kWidth) {
      Floats tile[kWidth];
      for (int i = 0; i < kWidth; ++i) tile[i] = (Load(rows + (r + i) * coded_dim + d) - less) * weight;
      Transpose(tile);
      for (int i = 0; i < kWidth; ++i) Store(tile[i], columns + (d + i) * kBlockRows + r);
    }
  }
}

// kStages stages of the Hadamard transform of n columns in one pass. The first stage combines columns that are
// `distance` apart.
template <int kStages>
MNEME_INLINE void CombineColumns(float* columns, int64_t n, int64_t distance) {
  constexpr int kCount = 1 << kStages;
  for (int64_t begin = 0; begin < n; begin += distance << kStages) {
    for (int64_t i = begin; i < begin + distance; ++i) {
      for (int64_t r = 0; r < kBlockRows; r += kWidth) {
        Floats v[kCount];
        for (int k = 0; k < kCount; ++k) v[k] = Load(columns + (i + k * distance) * kBlockRows + r);
        for (int apart = 1; apart < kCount; apart *= 2) {
          for (int k = 0; k < kCount; ++k) {
            if ((k & apart) != 0) continue;
            const Floats sum = v[k] + v[k + apart], difference = v[k] - v[k + apart];
            v[k] = sum;
            v[k + apart] = difference;
          }
        }
        for (int k = 0; k < kCount; ++k) Store(v[k], columns + (i + k * distance) * kBlockRows + r);
      }
    }
  }
}

// Rotate's transform of n columns, n a power of two. The weights include its scale, except for n = 2.
MNEME_INLINE void TransformColumns(float* columns, int64_t n) {
  if (n == 2) {
    const float scale = 0x1.6a09e6p-1f;  // 1 / sqrt(2)
    for (int64_t r = 0; r < kBlockRows; r += kWidth) {
      const Floats a = Load(columns + r), b = Load(columns + kBlockRows + r);
      Store((a + b) * scale, columns + r);
      Store((a - b) * scale, columns + kBlockRows + r);
    }
    return;
  }
  int64_t distance = 1;
  for (int stages = __builtin_ctzll(static_cast<uint64_t>(n)); stages > 0;) {
    const int now = stages < 3 ? stages : stages % 3 == 1 ? 4 : 3;
    switch (now) {
      case 1: CombineColumns<1>(columns, n, distance); break;
      case 2: CombineColumns<2>(columns, n, distance); break;
      case 3: CombineColumns<3>(columns, n, distance); break;
      default: CombineColumns<4>(columns, n, distance); break;
    }
    distance <<= now;
    stages -= now;
  }
}

// greatest [kBlockRows] = the greatest magnitude in each row. NaN is ignored.
MNEME_INLINE void GreatestMagnitudes(const float* columns, int64_t coded_dim, float* greatest) {
  for (int64_t r = 0; r < kBlockRows; r += kWidth) {
    Floats most = {};
    for (int64_t d = 0; d < coded_dim; ++d) {
      Ints bits;
      __builtin_memcpy(&bits, columns + d * kBlockRows + r, sizeof(bits));
      const auto size = reinterpret_cast<Floats>(bits & 0x7fffffff);
      most = size > most ? size : most;
    }
    Store(most, greatest + r);
  }
}

// Sums of squares for each row, in units of 1 / inverse_scale.
struct Squares {
  float errors[kBlockRows];  // of (row - what the codes stand for)
  float norms[kBlockRows];   // of what the codes stand for
  float all[kBlockRows];     // of the row
};

// codes [coded_dim / 4][kBlockRows][4] = round(columns * inverse_scale) + kZeroCode. A row's squares are summed in
// kParts parts, dimension i in part i % kParts, and the parts are added in order.
MNEME_INLINE void EncodeColumns(const float* columns, const float* inverse_scale, int64_t coded_dim, char* codes,
                                Squares* squares) {
  constexpr int kParts = 16, kTogether = 4;
  // Adding and subtracting it rounds numbers below 2^22 to an integer; adding it leaves the integer in the last bits.
  constexpr float kRound = 0x1.8p23f;
  const Floats most = Floats{} + static_cast<float>(kMaxCodeMagnitude);
  for (int64_t r = 0; r < kBlockRows; r += kWidth) {
    const Floats scale = Load(inverse_scale + r);
    Floats errors = {}, norms = {}, all = {};
    for (int64_t part = 0; part < kParts; part += kTogether) {
      Floats part_errors[kTogether] = {}, part_norms[kTogether] = {}, part_all[kTogether] = {};
      for (int64_t i = part; i < coded_dim; i += kParts) {
        Ints line = {};
        for (int k = 0; k < kTogether; ++k) {
          const Floats exact = Load(columns + (i + k) * kBlockRows + r) * scale;
          Floats whole = (exact + kRound) - kRound;
          whole = whole > most ? most : whole;
          whole = whole > -most ? whole : -most;  // also for NaN
          const Floats rest = exact - whole;
          part_errors[k] += rest * rest;
          part_norms[k] += whole * whole;
          part_all[k] += exact * exact;
          const auto bits = reinterpret_cast<Ints>(whole + (kRound + static_cast<float>(kZeroCode)));
          line |= (bits & 0xff) << (8 * k);
        }
        __builtin_memcpy(codes + i * kBlockRows + r * 4, &line, sizeof(line));
      }
      for (int k = 0; k < kTogether; ++k) {
        errors += part_errors[k];
        norms += part_norms[k];
        all += part_all[k];
      }
    }
    Store(errors, squares->errors + r);
    Store(norms, squares->norms + r);
    Store(all, squares->all + r);
  }
}

// Below kTiny and above kHuge, squares or reciprocals leave f32's range. A smaller row is coded as zero; a greater one
// gets an infinite bound, so that the scan always reads its key.
constexpr float kTiny = 1e-15f, kHuge = 1e15f;

// header.inverse_scale and inverse_scale [kBlockRows], the same numbers as f32: kMaxCodeMagnitude / greatest, rounded
// down to bf16.
MNEME_INLINE void SetScales(const float* greatest, BlockHeader* header, float* inverse_scale) {
  for (int r = 0; r < kBlockRows; ++r) {
    const bool usual = greatest[r] > kTiny && greatest[r] < kHuge;
    const float exact = usual ? static_cast<float>(kMaxCodeMagnitude) / greatest[r] : 1.0f;
    uint32_t bits;
    __builtin_memcpy(&bits, &exact, sizeof(bits));
    header->inverse_scale[r] = static_cast<uint16_t>(bits >> 16);
    bits &= 0xffff0000u;
    __builtin_memcpy(&inverse_scale[r], &bits, sizeof(bits));
  }
}

// header.error and header.norm, each the greatest of all rows.
MNEME_INLINE void SetBounds(const float* greatest, const Squares& squares, BlockHeader* header) {
  // Covers the rounding of the sums of squares. The share of `all` covers the rounding of the mean's subtraction and of
  // the rotation, 2^-20 of the norm.
  constexpr float kRoundingFactor = 1.0001f;
  for (int r = 0; r < kBlockRows; ++r) {
    float error =
        __builtin_sqrtf(squares.errors[r]) * kRoundingFactor + 3e-6f * __builtin_sqrtf(squares.all[r]) + kTiny;
    float norm = __builtin_sqrtf(squares.norms[r]) * kRoundingFactor;
    if (!(greatest[r] < kHuge) || squares.all[r] != squares.all[r]) {
      error = __builtin_inff();
      norm = 0;
    }
    header->error = header->error < error ? error : header->error;
    header->norm = header->norm < norm ? norm : header->norm;
  }
}

MNEME_INLINE int64_t FloorPowerOfTwo(int64_t n) {
  return int64_t{1} << (63 - __builtin_clzll(static_cast<uint64_t>(n)));
}

// CodingKernels::encode_block.
void EncodeBlock(const float* rows, const float* mean, const float* weights, int64_t dim, int64_t coded_dim,
                 float* columns, char* block) {
  CentreAndTranspose(rows, mean, weights, coded_dim, columns);
  for (int64_t begin = 0; begin < dim;) {
    const int64_t n = FloorPowerOfTwo(dim - begin);
    TransformColumns(columns + begin * kBlockRows, n);
    begin += n;
  }
  alignas(64) float greatest[kBlockRows], inverse_scale[kBlockRows];
  GreatestMagnitudes(columns, coded_dim, greatest);
  BlockHeader header;
  __builtin_memset(&header, 0, sizeof(header));  // its padding, too: blocks are kept on disk and compared
  SetScales(greatest, &header, inverse_scale);
  Squares squares;
  EncodeColumns(columns, inverse_scale, coded_dim, block + sizeof(header), &squares);
  SetBounds(greatest, squares, &header);
  __builtin_memcpy(block, &header, sizeof(header));
}

// The factor that makes the transform of n values orthogonal.
MNEME_INLINE float OrthogonalScale(int64_t n) {
  return static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(n)));
}

// One stage of the transform of n values: sums and differences of values that are `distance` apart, a multiple of the
// vector's lanes.
template <typename Vector>
MNEME_INLINE void CombineValues(float* values, int64_t n, int64_t distance) {
  constexpr int64_t kVectorLanes = sizeof(Vector) / sizeof(float);
  for (int64_t begin = 0; begin < n; begin += 2 * distance) {
    for (int64_t i = begin; i < begin + distance; i += kVectorLanes) {
      Vector a, b;
      __builtin_memcpy(&a, values + i, sizeof(a));
      __builtin_memcpy(&b, values + i + distance, sizeof(b));
      const Vector sum = a + b, difference = a - b;
      __builtin_memcpy(values + i, &sum, sizeof(sum));
      __builtin_memcpy(values + i + distance, &difference, sizeof(difference));
    }
  }
}

// The orthogonal Hadamard transform of n values, n a power of two.
MNEME_INLINE void TransformValues(float* values, int64_t n) {
  const float scale = OrthogonalScale(n);
  if (n < 4) {
    for (int64_t distance = 1; distance < n; distance *= 2) {
      const float sum = values[0] + values[distance], difference = values[0] - values[distance];
      values[0] = sum * scale;
      values[distance] = difference * scale;
    }
    return;
  }
  // Distances 1 and 2, within a vector of four; then distances of whole vectors.
  for (int64_t i = 0; i < n; i += 4) {
    FourFloats v;
    __builtin_memcpy(&v, values + i, sizeof(v));
    v = v * scale;
    v = v * FourFloats{1, -1, 1, -1} + FourFloats{v[1], v[0], v[3], v[2]};
    v = v * FourFloats{1, 1, -1, -1} + FourFloats{v[2], v[3], v[0], v[1]};
    __builtin_memcpy(values + i, &v, sizeof(v));
  }
  int64_t distance = 4;
  for (; distance < n && distance < kWidth; distance *= 2) CombineValues<FourFloats>(values, n, distance);
  for (; distance < n; distance *= 2) CombineValues<Floats>(values, n, distance);
}

// CodingKernels::rotate.
void RotateVector(float* vector, const float* signs, int64_t sign_count, int64_t dim) {
  for (int64_t i = 0; i < sign_count; ++i) vector[i] *= signs[i];
  for (int64_t begin = 0; begin < dim;) {
    const int64_t n = FloorPowerOfTwo(dim - begin);
    TransformValues(vector + begin, n);
    begin += n;
  }
}

}  // namespace
}  // namespace mneme::codes
