// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_APPEND_INL_H_
#define MNEME_ATTENTION_CUDA_APPEND_INL_H_

#include "attention/cuda/problem.h"
#include "attention/cuda/select-inl.h"

// Writes new rows at the end of a memory's rows on the device, in the memory's element type; one warp writes one row.
// The end is read on the device, so a captured append continues where the last replay ended. AdvanceEnd then moves the
// end.
namespace mneme::cuda {

struct AppendArgs {
  const void* source = nullptr;     // [tokens, heads, dim]
  DType source_type = DType::kF32;  // kF32, kF16 or kBF16
  int64_t row_stride = 0;           // in elements, as the next
  int64_t head_stride = 0;
  int32_t heads = 0;
  int32_t dim = 0;           // a multiple of kLanes, at most 256
  int64_t tokens = 0;        // here
  int64_t offset = 0;        // the first of them within the whole append
  int64_t all_tokens = 0;    // of the whole append: all of them fit, or none is written
  DType type = DType::kF16;  // the memory's
  bool values = false;       // into values; else into keys
  MemoryRows* rows = nullptr;
};

// Grid: (tokens * heads / kWarps, rounded up).
template <class Block>
MNEME_DEVICE void AppendRows(Block& block, const AppendArgs& args) {
  constexpr int kMost = 256 / kLanes;
  const int64_t number = block.x() * Block::kWarps + block.warp();
  if (number >= args.tokens * args.heads) return;
  const MemoryRows rows = *args.rows;
  if (rows.end + args.all_tokens > rows.capacity) return;
  const int64_t token = number / args.heads, head = number % args.heads;
  const int64_t from = token * args.row_stride + head * args.head_stride;
  const int64_t to = head * rows.capacity + rows.end + args.offset + token;
  void* const data = const_cast<void*>(args.values ? rows.values : rows.keys);
  float* const scales = const_cast<float*>(args.values ? rows.value_scales : rows.key_scales);
  float element[kMost];
  float greatest = 0.0f;
  MNEME_UNROLL
  for (int i = 0; i < kMost; ++i) {
    const int d = i * kLanes + block.lane();
    element[i] = d < args.dim ? LoadElement(args.source_type, args.source, from + d) : 0.0f;
    greatest = Greatest(greatest, fabsf(element[i]));
  }
  float scale = 0.0f;
  if (args.type == DType::kI8) {
    scale = WarpGreatestOf(block, greatest) / 127.0f;
    if (block.lane() == 0) scales[to] = scale;
  }
  MNEME_UNROLL
  for (int i = 0; i < kMost; ++i) {
    const int d = i * kLanes + block.lane();
    if (d >= args.dim) continue;
    if (args.type == DType::kI8) {
      const float steps = scale == 0.0f ? 0.0f : rintf(element[i] / scale);
      static_cast<int8_t*>(data)[to * args.dim + d] = static_cast<int8_t>(Greatest(-127.0f, Least(127.0f, steps)));
    } else {
      static_cast<uint16_t*>(data)[to * args.dim + d] = Narrow(args.type, element[i]);
    }
  }
}

// Runs on one thread, after all rows are written.
MNEME_HOST_DEVICE void AdvanceEnd(MemoryRows* rows, int64_t tokens) {
  if (rows->end + tokens <= rows->capacity) rows->end += tokens;
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_APPEND_INL_H_
