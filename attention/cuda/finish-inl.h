// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_CUDA_FINISH_INL_H_
#define MNEME_ATTENTION_CUDA_FINISH_INL_H_

#include "attention/cuda/columns-inl.h"
#include "attention/cuda/workspace.h"

// The second kernel. Each block serves one query token and head: it ranks the candidates of all ranges, gathers the
// values of the k best, applies softmax, and fuses the result with the states of the local splits.
namespace mneme::cuda {

// The layout of the block's shared memory, in bytes.
struct FinishShared {
  int64_t candidates, scratch, found, weights, sums, partials, counter, bytes;
};
MNEME_HOST_DEVICE FinishShared FinishSharedOf(int64_t ranges, int64_t top_k, int64_t threads) {
  FinishShared at = {};
  at.candidates = 0;
  at.scratch = at.candidates + 8 * ranges * top_k;
  at.found = at.scratch + 8 * top_k;
  at.sums = RoundUp(at.found + 8 * top_k, 16);  // [threads][8]
  at.weights = at.sums + 4 * 8 * threads;
  at.partials = at.weights + 4 * top_k;
  at.counter = at.partials + 4 * 2 * (threads / kLanes);
  at.bytes = RoundUp(at.counter + 4, 16);
  return at;
}

// The sequence that owns a query token.
MNEME_HOST_DEVICE int32_t SequenceOf(const int64_t* offsets, int32_t batch, int64_t token) {
  int32_t first = 0, last = batch - 1;
  while (first < last) {
    const int32_t middle = first + (last - first + 1) / 2;
    if (offsets[middle] <= token) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return first;
}

// Loads eight elements of a row of values.
template <class Block>
MNEME_DEVICE void LoadEight(Block& block, DType type, const void* values, int64_t index, float (&eight)[8]) {
  if (type == DType::kI8) {
    const Vec8 bytes = block.Load8(static_cast<const int8_t*>(values) + index);
    MNEME_UNROLL
    for (int i = 0; i < 8; ++i) {
      eight[i] = static_cast<float>(static_cast<int8_t>(bytes.x[i / 4] >> (8 * (i % 4))));
    }
    return;
  }
  const Vec16 pairs = block.Load16(static_cast<const uint16_t*>(values) + index);
  MNEME_UNROLL
  for (int i = 0; i < 8; ++i) eight[i] = Widen(type, static_cast<uint16_t>(pairs.x[i / 2] >> (16 * (i % 2))));
}

// exp(sum - greatest): the weight of a state among states whose greatest log-sum-exp is `greatest`.
MNEME_HOST_DEVICE float StateWeight(float sum, float greatest) {
  return sum == -Infinity() ? 0.0f : expf(sum - greatest);
}
// Returns: the greater one; NaN if either is NaN.
MNEME_HOST_DEVICE float GreaterSum(float a, float b) {
  return a != a || b <= a ? a : b;
}

// Longer than 60 lines, because its phases share registers, shared memory and barriers: as functions they would pass
// each other a dozen references.
template <class Block>
// NOLINTNEXTLINE(readability-function-size)
MNEME_DEVICE void Finish(Block& block, const AttendProblem& problem, const AttendPlan& plan,
                         const Workspace& workspace) {
  const int64_t pair = block.x();
  const int64_t token = pair / problem.q_heads;
  const auto head = static_cast<int32_t>(pair % problem.q_heads);
  const int32_t kv_head = head / (problem.q_heads / problem.kv_heads);
  const int32_t sequence = SequenceOf(problem.query_offsets, problem.batch, token);
  const auto top_k = static_cast<uint32_t>(problem.top_k);
  const FinishShared at = FinishSharedOf(plan.ranges, problem.top_k, Block::kThreads);
  auto* const candidates = reinterpret_cast<uint64_t*>(block.shared() + at.candidates);
  auto* const found = reinterpret_cast<uint64_t*>(block.shared() + at.found);
  auto* const weights = reinterpret_cast<float*>(block.shared() + at.weights);
  auto* const sums = reinterpret_cast<float*>(block.shared() + at.sums);

  // Rank the candidates of the search.
  MemoryRows memory;
  uint32_t kept = 0;
  if (plan.ranges > 0) {
    memory = *problem.memories[sequence];
    const int64_t rows = memory.end - memory.begin;
    const auto ranges = static_cast<uint32_t>(SlicesUsed(rows, plan.ranges, RangeRows(plan, rows)));
    const uint64_t* const from = workspace.candidates + pair * plan.ranges * problem.top_k;
    for (uint32_t i = static_cast<uint32_t>(block.thread()); i < ranges * top_k; i += Block::kThreads) {
      candidates[i] = from[i];
    }
    block.Sync();
    kept = SortedBest(block, candidates, ranges * top_k, HeadTopK(problem, head),
                      reinterpret_cast<uint64_t*>(block.shared() + at.scratch), found,
                      reinterpret_cast<uint32_t*>(block.shared() + at.partials),
                      reinterpret_cast<uint32_t*>(block.shared() + at.counter));
  }
  for (uint32_t i = static_cast<uint32_t>(block.thread()); i < top_k; i += Block::kThreads) {
    const bool has = i < kept;
    if (problem.found != nullptr) problem.found[pair * top_k + i] = has ? int64_t{IndexOf(found[i])} : -1;
    if (problem.found_logits != nullptr) {
      problem.found_logits[pair * top_k + i] = has ? LogitOf(found[i]) : -Infinity();
    }
  }

  // Softmax. Fixed threads add the rows in their order of rank, so that the bits are the same each time.
  float memory_sum = -Infinity();  // log-sum-exp
  float memory_mass = 0.0f;
  const float greatest = kept == 0 ? -Infinity() : LogitOf(found[0]);
  if (greatest != -Infinity()) {
    for (uint32_t i = static_cast<uint32_t>(block.thread()); i < kept; i += Block::kThreads) {
      weights[i] = expf(LogitOf(found[i]) - greatest);
    }
    block.Sync();
    for (uint32_t i = static_cast<uint32_t>(block.lane()); i < kept; i += kLanes) memory_mass += weights[i];
    memory_mass = WarpSumOf(block, memory_mass);
    memory_sum = greatest + logf(memory_mass);
  }
  const int eights = problem.value_dim / 8;
  const int rows_at_once = Block::kThreads / eights;
  {
    const int eighth = block.thread() % eights;
    float sum[8] = {};
    if (memory_mass != 0.0f) {  // NaN, too
      for (uint32_t i = static_cast<uint32_t>(block.thread() / eights); i < kept;
           i += static_cast<uint32_t>(rows_at_once)) {
        const int64_t row = kv_head * memory.capacity + IndexOf(found[i]);
        float weight = weights[i];
        if (problem.memory_type == DType::kI8) weight *= memory.value_scales[row];
        float value[8];
        LoadEight(block, problem.memory_type, memory.values, row * problem.value_dim + eighth * 8, value);
        MNEME_UNROLL
        for (int e = 0; e < 8; ++e) sum[e] += weight * value[e];
      }
    }
    MNEME_UNROLL
    for (int e = 0; e < 8; ++e) sums[block.thread() * 8 + e] = sum[e];
  }
  block.Sync();

  // Merge the local states, and fuse.
  int splits = 0;
  if (plan.splits > 0) {
    splits = static_cast<int>(SlicesUsed(problem.local_offsets[sequence + 1] - problem.local_offsets[sequence],
                                         plan.splits, plan.split_rows));
  }
  const float* const local_sums = workspace.local_sums + pair * plan.splits;
  const float* const local_outputs = workspace.local_outputs + pair * plan.splits * problem.value_dim;
  float greatest_local = -Infinity();
  for (int s = 0; s < splits; ++s) greatest_local = GreaterSum(greatest_local, local_sums[s]);
  float local_mass = 0.0f;
  if (greatest_local != -Infinity()) {
    for (int s = 0; s < splits; ++s) local_mass += StateWeight(local_sums[s], greatest_local);
  }
  const float local_sum = greatest_local == -Infinity() ? -Infinity() : greatest_local + logf(local_mass);
  const float both = GreaterSum(memory_sum, local_sum);
  float of_memory = 0.0f, of_local = 0.0f, all_sum = -Infinity();
  if (both != -Infinity()) {
    const float memory_weight = StateWeight(memory_sum, both);
    const float local_weight = StateWeight(local_sum, both);
    of_memory = memory_weight / (memory_weight + local_weight);
    of_local = local_weight / (memory_weight + local_weight);
    all_sum = both + logf(memory_weight + local_weight);
  }
  if (problem.fusion == Fusion::kGated) {
    const float gate = problem.gate[head];
    of_memory = 1.0f / (1.0f + expf(-gate));
    of_local = 1.0f / (1.0f + expf(gate));
  }
  for (int d = block.thread(); d < problem.value_dim; d += Block::kThreads) {
    float retrieved = 0.0f;
    if (memory_mass != 0.0f) {
      for (int r = 0; r < rows_at_once; ++r) retrieved += sums[(r * eights + d / 8) * 8 + d % 8];
      retrieved /= memory_mass;
    }
    float local = 0.0f;
    if (greatest_local != -Infinity()) {
      for (int s = 0; s < splits; ++s) {
        local += StateWeight(local_sums[s], greatest_local) * local_outputs[s * problem.value_dim + d];
      }
      local /= local_mass;
    }
    // An empty part has no weight, or counts as the zero vector.
    StoreElement(problem.output_type, problem.output, pair * problem.value_dim + d,
                 of_memory * retrieved + of_local * local);
  }
  if (block.thread() == 0) {
    if (problem.log_sum_exp != nullptr) problem.log_sum_exp[pair] = all_sum;
    if (problem.memory_share != nullptr) problem.memory_share[pair] = of_memory;
  }
}

}  // namespace mneme::cuda

#endif  // MNEME_ATTENTION_CUDA_FINISH_INL_H_
