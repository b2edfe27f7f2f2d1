#ifndef MNEME_INDEX_SCAN_KERNEL_H_
#define MNEME_INDEX_SCAN_KERNEL_H_

// Internal: what scan.cc and the kernels of each instruction set share. The kernels are compiled for CPUs that
// the process may not run on, so this header holds plain data only: an inline function here could be emitted
// with AVX-512 instructions and picked by the linker for everybody.

#include <stdint.h>

namespace mneme::scan {

inline constexpr int kLanes = 16;

// Element types, numbered as mneme::DType.
enum Element : int { kF32 = 0, kF16 = 1, kBF16 = 2, kI8 = 3 };

// One query during a scan. The logit of row r is
//   cap(scale * dot) + addend - decay * row_penalty[r], the last term only if decay is not 0.
struct Query {
  const float* values;  // [dim]
  float scale;
  float soft_cap;
  float addend;
  float decay;
  const float* row_penalty;
  bool plain;       // neither soft cap nor decay
  float threshold;  // rows whose logit is below it are dropped
  float gate;       // a row whose scale * dot is below it has a logit below the threshold: spares the tanh of soft_cap
};

// Gets the logits of kLanes rows from `row` on, those set in `lanes` being at or above the threshold of query
// `number`, whose threshold and gate it brings up to date.
using Sink = void (*)(void* context, int64_t number, Query& query, int64_t row, const float* logits, uint32_t lanes);

// `count` consecutive blocks of kLanes rows each, the first one beginning with row `row`. Only rows whose bit is
// set in `lanes` count (0xffff but for a block cut by the range's ends, which comes alone). All lanes are readable.
struct Blocks {
  const char* data;
  int64_t block_bytes;
  int64_t count;
  int64_t row;
  uint32_t lanes;
  Element element;
  int64_t dim;
};

// The kernels for one instruction set.
struct Kernels {
  const char* name;

  // Scores all queries against all blocks. `scratch`: f32 [dim, kLanes], 64-byte aligned.
  void (*scan)(const Blocks& blocks, Query* queries, int64_t count, float* scratch, Sink sink, void* context);

  // dots[i * kLanes + lane] = query · that lane of blocks[i]: the same bits as `scan` works with.
  void (*dot)(Element element, int64_t dim, const char* const* blocks, int64_t count, const float* query, float* dots);
};

extern const Kernels kPlainKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// `name` among those this build has and this CPU can run, else null.
const Kernels* FindKernels(const char* name);

// Makes the process use `kernels`; null: the best of this CPU again. For tests, while nothing scans.
void UseKernelsForTesting(const Kernels* kernels);

}  // namespace mneme::scan

#endif  // MNEME_INDEX_SCAN_KERNEL_H_
