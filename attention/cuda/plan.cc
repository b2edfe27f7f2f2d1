// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/plan.h"

#include <cmath>
#include <cstdint>
#include <string>

#include "attention/cuda/argument_error.h"
#include "attention/cuda/finish-inl.h"
#include "attention/cuda/search-inl.h"

namespace mneme::cuda {
namespace {

constexpr int64_t kLeastRangeRows = 512;  // below it a block's start costs more than its rows

std::string NullError(const char* name) {
  return ArgumentError(name, "a pointer to device memory", std::string("NULL"));
}

bool Aligned(const void* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

const char* TypeName(DType type) {
  switch (type) {
    case DType::kF32: return "f32";
    case DType::kF16: return "f16";
    case DType::kBF16: return "bf16";
    case DType::kI8: return "i8";
  }
  return "no element type";
}

std::string CheckLocalRows(const AttendProblem& p) {
  if ((p.local_keys == nullptr) != (p.local_values == nullptr)) {
    return p.local_keys == nullptr ? NullError("local_keys") : NullError("local_values");
  }
  if (p.local_keys == nullptr) return "";
  if (p.local_offsets == nullptr) return NullError("local_offsets");
  if (!Aligned(p.local_keys, 16))
    return ArgumentError("local_keys", "an address aligned to 16 bytes", std::string("another"));
  if (!Aligned(p.local_values, 16)) {
    return ArgumentError("local_values", "an address aligned to 16 bytes", std::string("another"));
  }
  const struct {
    const char* name;
    int64_t stride;
  } strides[] = {{"local_key_row_stride", p.local_key_row_stride},
                 {"local_key_head_stride", p.local_key_head_stride},
                 {"local_value_row_stride", p.local_value_row_stride},
                 {"local_value_head_stride", p.local_value_head_stride}};
  for (const auto& [name, stride] : strides) {
    if (stride % 8 != 0) return ArgumentError(name, "a multiple of 8 elements", stride);
  }
  if (p.local_mask != LocalMaskKind::kNone && p.local_mask != LocalMaskKind::kCausal &&
      p.local_mask != LocalMaskKind::kSlidingWindow) {
    return ArgumentError("local_mask", "a LocalMask", static_cast<int64_t>(p.local_mask));
  }
  if (p.local_mask == LocalMaskKind::kSlidingWindow && p.local_window < 1) {
    return ArgumentError("local_window", "at least 1", p.local_window);
  }
  return "";
}

std::string CheckRanking(const AttendProblem& p) {
  if (p.tokens > 0 && p.decay != nullptr && p.positions == nullptr) return NullError("positions");
  if (!(p.soft_cap >= 0) || !std::isfinite(p.soft_cap)) {
    return ArgumentError("soft_cap", "a finite number from 0 on", std::to_string(p.soft_cap));
  }
  if (!(p.decay_beyond > 0) || !std::isfinite(p.decay_beyond)) {
    return ArgumentError("decay_beyond", "a finite number above 0", std::to_string(p.decay_beyond));
  }
  return "";
}

}  // namespace

std::string CheckProblem(const AttendProblem& p, const AttendBounds& bounds) {
  if (p.tokens < 0) return ArgumentError("tokens", "at least 0", p.tokens);
  if (p.batch < 1 || p.batch > 65535) return ArgumentError("batch", "1 to 65535", p.batch);
  if (p.kv_heads < 1 || p.kv_heads > 65535) return ArgumentError("kv_heads", "1 to 65535", p.kv_heads);
  if (p.q_heads < 1 || p.q_heads % p.kv_heads != 0) {
    return ArgumentError("q_heads", "a multiple of kv_heads = " + std::to_string(p.kv_heads), p.q_heads);
  }
  if (p.tokens > INT32_MAX / p.q_heads) {
    return ArgumentError("tokens", "at most " + std::to_string(INT32_MAX / p.q_heads) + " with so many heads",
                         p.tokens);
  }
  if (!HasKernelsForDim(p.key_dim)) return ArgumentError("key_dim", "64, 128 or 256", p.key_dim);
  if (!HasKernelsForDim(p.value_dim)) return ArgumentError("value_dim", "64, 128 or 256", p.value_dim);
  if (p.top_k < 0 || p.top_k > kMaxTopK) return ArgumentError("top_k", "0 to " + std::to_string(kMaxTopK), p.top_k);
  if (p.type != DType::kF16 && p.type != DType::kBF16) return ArgumentError("type", "f16 or bf16", TypeName(p.type));
  if (p.memory_type != p.type && p.memory_type != DType::kI8) {
    return ArgumentError("memory_type", std::string(TypeName(p.type)) + " or i8", TypeName(p.memory_type));
  }
  if (p.output_type != DType::kF32 && p.output_type != DType::kF16 && p.output_type != DType::kBF16) {
    return ArgumentError("output_type", "f32, f16 or bf16", TypeName(p.output_type));
  }
  if (p.tokens > 0 && p.query == nullptr) return NullError("query");
  if (!Aligned(p.query, 4)) return ArgumentError("query", "an address aligned to 4 bytes", std::string("another"));
  if (!Aligned(p.memory_query, 4)) {
    return ArgumentError("memory_query", "an address aligned to 4 bytes", std::string("another"));
  }
  if (p.query_offsets == nullptr) return NullError("query_offsets");
  if (p.top_k > 0 && p.memories == nullptr) return NullError("memories");
  if (p.tokens > 0 && p.output == nullptr) return NullError("output");
  if (p.fusion != Fusion::kJoint && p.fusion != Fusion::kGated) {
    return ArgumentError("fusion", "a Fusion", static_cast<int64_t>(p.fusion));
  }
  if (p.fusion == Fusion::kGated && p.gate == nullptr) return NullError("gate");
  if (bounds.queries < 1) return ArgumentError("bounds.queries", "at least 1", bounds.queries);
  if (bounds.memory_rows < 0 || bounds.memory_rows > UINT32_MAX) {
    return ArgumentError("bounds.memory_rows", "0 to 4294967295", bounds.memory_rows);
  }
  if (bounds.local_rows < 0) return ArgumentError("bounds.local_rows", "at least 0", bounds.local_rows);
  std::string wrong = CheckLocalRows(p);
  return wrong.empty() ? CheckRanking(p) : wrong;
}

AttendPlan PlanAttend(const AttendProblem& problem, const AttendBounds& bounds, DeviceRoom room, int search_warps) {
  AttendPlan plan;
  const int64_t step = int64_t{search_warps} * kTileRows;
  const int64_t columns = bounds.queries * (problem.q_heads / problem.kv_heads);
  plan.columns = columns <= kDecodeColumns ? kDecodeColumns : kPrefillColumns;
  plan.column_tiles = static_cast<int32_t>(Least<int64_t>(CeilDivide(columns, plan.columns), 1 << 20));

  if (problem.local_keys != nullptr) {
    // A step of decoding waits for its slowest block, so the local rows are cut; a prompt has blocks enough.
    const int64_t splits =
        plan.columns == kDecodeColumns
            ? Least<int64_t>(kMaxLocalSplits, Greatest<int64_t>(1, CeilDivide(bounds.local_rows, kLocalChunk)))
            : 1;
    plan.split_rows = Greatest<int64_t>(kLocalChunk, RoundUp(CeilDivide(bounds.local_rows, splits), kLocalChunk));
    plan.splits = static_cast<int32_t>(Greatest<int64_t>(1, CeilDivide(bounds.local_rows, plan.split_rows)));
  }
  if (problem.top_k > 0) {
    // One wave of blocks, those of the local rows among them, if the heads alone do not fill the device; else about
    // four waves, so that the last is a small part.
    const int64_t heads = Greatest<int64_t>(1, int64_t{problem.batch} * problem.kv_heads * plan.column_tiles);
    const int64_t at_once = room.blocks / heads - plan.splits;
    int64_t ranges = at_once >= 1 ? at_once : CeilDivide(4 * room.blocks, heads);
    ranges = Least<int64_t>(ranges, Least(kMaxRanges, kMaxCandidates / problem.top_k));
    if (bounds.memory_grows) {
      plan.range_rows = RoundUp(kLeastRangeRows, step);
      plan.ranges = static_cast<int32_t>(Greatest<int64_t>(1, ranges));
    } else {
      ranges = Greatest<int64_t>(1, Least<int64_t>(ranges, CeilDivide(bounds.memory_rows, kLeastRangeRows)));
      plan.range_rows = Greatest(step, RoundUp(CeilDivide(bounds.memory_rows, ranges), step));
      plan.ranges = static_cast<int32_t>(Greatest<int64_t>(1, CeilDivide(bounds.memory_rows, plan.range_rows)));
    }
  }

  // Room for the best and a step, and as much again, so that a column is not trimmed at every step.
  plan.capacity = problem.top_k <= 64 ? kMaxCapacity / 2 : kMaxCapacity;

  const int64_t pairs = problem.tokens * problem.q_heads;
  plan.local_outputs_at = RoundUp(8 * pairs * plan.ranges * problem.top_k, 256);
  plan.local_sums_at = plan.local_outputs_at + RoundUp(4 * pairs * plan.splits * problem.value_dim, 256);
  plan.workspace_bytes = plan.local_sums_at + RoundUp(4 * pairs * plan.splits, 256);
  ForInstance(problem, plan, [&](auto instance) {
    using Instance = decltype(instance);
    plan.search_shared_bytes =
        static_cast<int32_t>(SearchSharedBytes<Instance::kDim, Instance::kColumnTiles>(plan.capacity));
  });
  return plan;
}

}  // namespace mneme::cuda
