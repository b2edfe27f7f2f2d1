// SPDX-License-Identifier: Apache-2.0
// The scan over codes, compiled once for each instruction set (docs/design/kernels.md). The including file defines, in
// an anonymous namespace within mneme::codes:
//
//   Floats, Ints              vectors of kWidth f32 and i32; kWidth divides kBlockRows, kParts = kBlockRows / kWidth
//   SplatInt(int32_t)         the value in every lane
//   WidenScales(p)            kWidth bf16 numbers as f32
//   Mask, kEmptyMask          one bit (or all bits) for each lane
//   Reaches(sums, scales, slope, margin)
//                             the lanes with sums[i] >= scales[i] * slope - margin, and those where this is NaN
//   Or(mask, mask), AnyLane(mask), MaskBits(mask)
//                             MaskBits: bit i stands for lane i
//   kGroupQueries             the most queries whose sums fit the registers, at most kQueryLanes
//   kValueCopies              Kernels::value_copies
//   kPrefetchL1Bytes, kPrefetchL2Bytes
//                             how far ahead codes are prefetched into the first-level and the second-level cache
//   DotBlock<kQ>(codes, dim, values, prefetch_l1, prefetch_l2, sums)
//                             adds values · codes of the rows of part p to sums[q][p], for a group of kQ queries, and
//                             prefetches the codes that lie prefetch_l1 and prefetch_l2 bytes ahead

namespace mneme::codes {
namespace {

// The bound of code_scan_kernel.h, solved for a row's sum. A row can reach query q's min_dot only if
//   sum >= slope[q] * inverse_scale[row] - (error[q] * header.error + norm[q] * header.norm)
// The queries of a group lie side by side.
struct SumThresholds {
  alignas(32) float slope[kQueryLanes] = {};  // (min_dot - mean_dot) / step
  alignas(32) float error[kQueryLanes] = {};  // error_weight / step
  alignas(32) float norm[kQueryLanes] = {};   // norm_weight / step

  void Set(int lane, const Query& query, float mean_dot) {
    SetSlope(lane, query, mean_dot);
    error[lane] = query.error_weight * query.inverse_step;
    norm[lane] = query.norm_weight * query.inverse_step;
  }
  void SetSlope(int lane, const Query& query, float mean_dot) {
    slope[lane] = (query.min_dot - mean_dot) * query.inverse_step;
  }

  // The subtrahend of the bound for one block, a little greater to cover the rounding of the comparison itself.
  MNEME_INLINE void Margins(const BlockHeader& header, float* margins) const {
    for (int i = 0; i < kQueryLanes; ++i)
      margins[i] = (header.error * error[i] + header.norm * norm[i]) * 1.0001f + 1.0f;
  }
};

// rows[q]: the rows of one block that may reach query q's min_dot, as bits. Returns whether there are any; if not,
// `rows` means nothing.
template <int kQ>
MNEME_INLINE bool FindHits(const BlockHeader& header, const SumThresholds& thresholds, const Ints (&sums)[kQ][kParts],
                           uint32_t (&rows)[kQ]) {
  alignas(32) float margins[kQueryLanes];
  thresholds.Margins(header, margins);
  Floats scales[kParts];
  for (int p = 0; p < kParts; ++p) scales[p] = WidenScales(header.inverse_scale + p * kWidth);
  const auto reaches = [&](int q, int p) { return Reaches(sums[q][p], scales[p], thresholds.slope[q], margins[q]); };
  if constexpr (kParts == 1) {
    // A query's mask is one number, which is worth keeping.
    uint32_t any = 0;
    for (int q = 0; q < kQ; ++q) any |= rows[q] = MaskBits(reaches(q, 0));
    return __builtin_expect(any != 0, 0);
  } else {
    // Most blocks have no hit: masks are joined for one test, and computed again where there is a hit.
    Mask any = kEmptyMask;
    for (int q = 0; q < kQ; ++q) {
      for (int p = 0; p < kParts; ++p) any = Or(any, reaches(q, p));
    }
    if (__builtin_expect(!AnyLane(any), 1)) return false;
    for (int q = 0; q < kQ; ++q) {
      rows[q] = 0;
      for (int p = 0; p < kParts; ++p) rows[q] |= MaskBits(reaches(q, p)) << (p * kWidth);
    }
    return true;
  }
}

// Collects hits, so that the callback seldom interrupts the reading of blocks.
struct HitBuffer {
  struct Entry {
    int32_t sums[kBlockRows];
    int64_t block;
    float mean_dot;
    int32_t query;
    uint32_t rows;
  };
  static constexpr int kFullSize = 64;

  Entry entries[kFullSize + kQueryLanes];
  int size = 0;

  // Adds the queries of a group that have hits in a block. There is no branch, since which queries have hits cannot be
  // predicted: the next entry overwrites an entry without hits.
  template <int kQ>
  MNEME_INLINE void Add(int64_t block, const float* mean_dots, const Ints (&sums)[kQ][kParts],
                        const uint32_t (&rows)[kQ]) {
    for (int q = 0; q < kQ; ++q) {
      Entry& entry = entries[size];
      __builtin_memcpy(entry.sums, sums[q], sizeof(entry.sums));
      entry.block = block;
      entry.mean_dot = mean_dots[q];
      entry.query = q;
      entry.rows = rows[q];
      size += rows[q] != 0 ? 1 : 0;
    }
  }

  // Hands all entries to the callback. `first` is the number of the group's first query.
  void Deliver(const BlockSpan& span, int64_t block_bytes, Query* queries, int64_t first, HitCallback on_hits,
               void* context) {
    for (const Entry* entry = entries; entry != entries + size; ++entry) {
      const int64_t query = first + entry->query;
      const BlockHits hits = {
          .query = query,
          .mean_dot = entry->mean_dot,
          .first_row = span.first_row + entry->block * kBlockRows,
          .header = reinterpret_cast<const BlockHeader*>(span.blocks + entry->block * block_bytes),
          .sums = entry->sums,
          .rows = entry->rows,
      };
      on_hits(context, queries[query], hits);
    }
    size = 0;
  }
};

// Compares queries first … first + kQ - 1, a group, with a span.
template <int kQ>
void ScanGroup(const BlockSpan& span, int64_t dim, const int8_t* values, Query* queries, int64_t first,
               HitCallback on_hits, void* context) {
  const int64_t block_bytes = BlockBytes(dim);
  const int64_t prefetch_l1 = span.prefetch_bytes != 0 ? span.prefetch_bytes : kPrefetchL1Bytes;
  const int64_t prefetch_l2 = span.prefetch_bytes != 0 ? span.prefetch_bytes : kPrefetchL2Bytes;
  const float* mean_dots = span.mean_dots + first;
  SumThresholds thresholds;
  for (int q = 0; q < kQ; ++q) thresholds.Set(q, queries[first + q], mean_dots[q]);
  HitBuffer buffer;
  const auto deliver = [&] {
    buffer.Deliver(span, block_bytes, queries, first, on_hits, context);
    // The callback may have raised min_dot.
    for (int q = 0; q < kQ; ++q) thresholds.Set(q, queries[first + q], mean_dots[q]);
  };
  int64_t chunk_end = kChunkBlocks - span.first_row / kBlockRows % kChunkBlocks;
  for (int64_t b = 0; b < span.count; ++b) {
    if (b == chunk_end) {
      chunk_end += kChunkBlocks;
      mean_dots += span.mean_dot_stride;
      for (int q = 0; q < kQ; ++q) thresholds.SetSlope(q, queries[first + q], mean_dots[q]);
    }
    const char* block = span.blocks + b * block_bytes;
    const BlockHeader& header = *reinterpret_cast<const BlockHeader*>(block);
    __builtin_prefetch(block + prefetch_l1);  // the header; DotBlock prefetches the codes
    Ints sums[kQ][kParts];
    for (int q = 0; q < kQ; ++q) {
      for (int p = 0; p < kParts; ++p) sums[q][p] = SplatInt(queries[first + q].start);
    }
    DotBlock<kQ>(reinterpret_cast<const uint8_t*>(block) + sizeof(BlockHeader), dim, values, prefetch_l1, prefetch_l2,
                 sums);
    uint32_t rows[kQ];
    if (!FindHits<kQ>(header, thresholds, sums, rows)) continue;
    buffer.Add<kQ>(b, mean_dots, sums, rows);
    if (buffer.size >= HitBuffer::kFullSize) deliver();
  }
  deliver();
}

// Kernels::scan.
void Scan(const BlockSpan& span, int64_t dim, const int8_t* values, Query* queries, int64_t count, HitCallback on_hits,
          void* context) {
  static_assert(kGroupQueries <= kQueryLanes);
  for (int64_t first = 0; first < count; first += kGroupQueries, values += kGroupQueries * dim * kValueCopies) {
#define MNEME_CASE(kQ)                                                                                     \
  case kQ:                                                                                                 \
    if constexpr (kQ <= kGroupQueries) ScanGroup<kQ>(span, dim, values, queries, first, on_hits, context); \
    break;
    switch (count - first < kGroupQueries ? count - first : kGroupQueries) {
      MNEME_CASE(1)
      MNEME_CASE(2)
      MNEME_CASE(3)
      MNEME_CASE(4)
      MNEME_CASE(5)
      MNEME_CASE(6)
      MNEME_CASE(7)
      MNEME_CASE(8)
      default: break;
    }
#undef MNEME_CASE
  }
}

// Kernels::dot_means. Each (query, mean) pair has two sums, since additions to a single one would wait for each other.
void DotMeans(const float* queries, const float* const* means, int64_t dim, float* dots) {
  typedef float Lanes __attribute__((vector_size(kQueryLanes * sizeof(float)), aligned(sizeof(float)), may_alias));
  const Lanes* const lanes = reinterpret_cast<const Lanes*>(queries);
  Lanes sums[kMeansPerCall][2] = {};
  int64_t d = 0;
  for (; d + 2 <= dim; d += 2) {
    for (int m = 0; m < kMeansPerCall; ++m) {
      sums[m][0] += lanes[d] * means[m][d];
      sums[m][1] += lanes[d + 1] * means[m][d + 1];
    }
  }
  for (int m = 0; m < kMeansPerCall; ++m) {
    if (d < dim) sums[m][0] += lanes[d] * means[m][d];
    *reinterpret_cast<Lanes*>(dots + m * kQueryLanes) = sums[m][0] + sums[m][1];
  }
}

}  // namespace
}  // namespace mneme::codes
