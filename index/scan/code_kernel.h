// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CODE_KERNEL_H_
#define MNEME_INDEX_SCAN_CODE_KERNEL_H_

// Internal: what the scan over codes and its kernels for each instruction set share. As in scan_kernel.h, plain data
// only. The arithmetic is explained in docs/design/scan.md.

#include <stddef.h>
#include <stdint.h>

namespace mneme::codes {

inline constexpr int kBlockRows = 16;
inline constexpr int kChunkBlocks = 16;  // blocks that share a mean

// A code c stands for (c - kZeroCode) / inverse_scale, its row's; 1 … 127, so that AVX2 can sum two products in 16
// bits.
inline constexpr int kZeroCode = 64;
inline constexpr int kGreatestCode = 63;  // of |c - kZeroCode|

inline constexpr int kGreatestValue = 127;  // of a query's element
inline constexpr int kTileDims = 16;        // elements of a query that lie together
inline constexpr int kLanes = 8;            // queries side by side, where each is one lane
inline constexpr int kMeans = 4;            // vectors that Kernels::dots takes at once

// What a block's codes come with. Lengths are in steps of the row's own scale, where they hardly differ between rows.
struct alignas(64) Header {
  uint16_t inverse_scale[kBlockRows];  // bf16
  float error;                         // at least the norm of what any row's code leaves out
  float norm;                          // at least the norm of what any row's code stands for
};

// A block of kBlockRows rows, `dim` being a multiple of 16:
//   Header  header
//   uint8_t codes[dim / 4][kBlockRows][4]
inline constexpr int64_t BlockBytes(int64_t dim) {
  return dim * kBlockRows + static_cast<int64_t>(sizeof(Header));
}

// One query during a scan, its values apart (see Kernels). Row r reaches at most
//   base + (step * (start + values · codes[r]) + error_weight * error + norm_weight * norm) / inverse_scale[r]
// where base is what the mean of the row's chunk makes of the dot product.
struct Query {
  int32_t start;  // -kZeroCode * (sum of values)
  float step;
  float inverse_step;  // infinity if the step is 0
  float error_weight;
  float norm_weight;
  float gate;  // rows that cannot reach it are dropped
};

// What a row reaches according to its code, and how much more it may be at most.
struct Reach {
  float middle;
  float room;
};

// Of row r of a block, whose sum is start + values · codes[r].
inline Reach ReachOf(const Query& query, float base, const Header& header, int r, int32_t sum) {
  const uint32_t bits = static_cast<uint32_t>(header.inverse_scale[r]) << 16;
  float inverse_scale;
  __builtin_memcpy(&inverse_scale, &bits, sizeof(inverse_scale));
  const float scale = 1 / inverse_scale;
  const float room = header.error * query.error_weight + header.norm * query.norm_weight;
  return {base + static_cast<float>(sum) * query.step * scale, room * scale};
}

// Some consecutive blocks.
struct Span {
  const char* blocks;
  int64_t count;
  int64_t row;         // of the KeyCodes, the first one of the first block
  int64_t ahead;       // bytes from a block to one that will be wanted soon; 0 if the next one will
  const float* bases;  // of each query in the chunk of `row`; those of each next chunk are `stride` further on
  int64_t stride;
};

// Gets the rows of a block, the first of them being `row`, that cannot be told to be below the gate of query `number`:
// those set in `rows`; the query's base there, and the sums of all. It may raise the gate.
using Sink = void (*)(void* context, int64_t number, Query& query, float base, int64_t row, const Header& header,
                      const int32_t* sums, uint32_t rows);

struct Kernels {
  const char* name;
  int group;  // queries that share a load of keys
  // 0, or what keeps sums of 16 bits from overflowing: the greatest sum of the positive values, and of the magnitudes
  // of the negative ones, among the eight of a tile with equal d % 4 / 2.
  int greatest_narrow_sum;
  int copies;  // of each four values, side by side: enough for a vector where none can be made of them on the way

  // A span of blocks against n queries. `values` holds theirs, as Pack puts them.
  void (*scan)(const Span& span, int64_t dim, const int8_t* values, Query* queries, int64_t n, Sink sink,
               void* context);

  // dots [kMeans][kLanes]: of vectors [n][kLanes], side by side, and each of kMeans others [n], each off by less than
  // n * 2^-24 * |a| * |b|.
  void (*dots)(const float* vectors, const float* const* others, int64_t n, float* dots);
};

// Puts the values [dim] of query i of n where the kernels look for them: group after group, each [dim / kTileDims]
// [queries of the group][kTileDims / 4][copies][4]; the last group has what is left of n. packed: [n][dim][copies].
inline void Pack(const Kernels& kernels, const int8_t* values, int64_t i, int64_t n, int64_t dim, int8_t* packed) {
  const int64_t first = i / kernels.group * kernels.group;
  const int64_t size = n - first < kernels.group ? n - first : kernels.group;
  for (int64_t d = 0; d < dim; d += 4) {
    int8_t* to =
        packed + (first * dim + (d / kTileDims * size + (i - first)) * kTileDims + d % kTileDims) * kernels.copies;
    for (int copy = 0; copy < kernels.copies; ++copy) __builtin_memcpy(to + 4 * copy, values + d, 4);
  }
}

extern const Kernels kPlainKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512VnniKernels;
#endif
#if defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

// Those that run: the best of this CPU, unless others are tested.
const Kernels& CurrentKernels();

// `name` among those this build has and this CPU can run, else null.
const Kernels* FindKernels(const char* name);

// Makes the process use `kernels`; null: the best of this CPU again. For tests, while nothing scans.
void UseKernelsForTesting(const Kernels* kernels);

}  // namespace mneme::codes

#endif  // MNEME_INDEX_SCAN_CODE_KERNEL_H_
