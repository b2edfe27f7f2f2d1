// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_ATTENTION_CUDA_ATTEND_CASE_H_
#define MNEME_TESTS_ATTENTION_CUDA_ATTEND_CASE_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "attention/cuda/plan.h"

// Problems for the fused kernels, in host memory, for tests with and without a device. No library but the standard one:
// a bare machine with a GPU builds this, too.
namespace mneme::cuda {

// How great a random case may be, and of which sort.
struct CaseLimits {
  int64_t memory_rows = 700;
  int64_t local_rows = 300;
  int64_t queries = 12;
  int32_t batch = 3;
  // Small whole numbers for elements and powers of two for scales: every logit is exact, and there are many ties.
  bool exact = false;
};

struct AttendCase {
  struct Memory {
    std::vector<uint8_t> keys, values;  // [kv_heads, capacity, dim] encoded
    std::vector<float> key_scales, value_scales;
    int64_t capacity = 0, begin = 0, end = 0, pinned = 0, kept = 0;

    bool Hides(int64_t row) const { return row < begin || row >= end || (row >= pinned && row < kept); }
  };

  AttendProblem shape;  // its pointers are unset
  AttendBounds bounds;
  DeviceRoom room;  // for a plan without a device
  bool exact = false;
  std::vector<int64_t> query_offsets, local_offsets, positions;
  std::vector<uint16_t> query, memory_query, local_keys, local_values;  // memory_query empty: query
  std::vector<Memory> memories;
  std::vector<int32_t> memory_of;               // [batch]
  std::vector<float> scale, bias, decay, gate;  // empty: NULL
  std::vector<int32_t> head_top_k;              // the same

  int64_t pairs() const { return shape.tokens * shape.q_heads; }
  std::string Description() const;
};

AttendCase RandomCase(std::mt19937& random, const CaseLimits& limits);

struct AttendAnswer {
  std::vector<uint8_t> output;  // [pairs, value_dim] of shape.output_type
  std::vector<float> log_sum_exp, found_logits, memory_share;
  std::vector<int64_t> found;
};

// The problem with all arrays placed. `Place` has
//   const T* Input(const std::vector<T>&)   a copy of the array, or the array itself; NULL if it is empty
// and `answer` takes the outputs where Place::Output(std::vector<T>&) says.
template <class Place>
AttendProblem Placed(const AttendCase& c, Place& place, AttendAnswer& answer) {
  AttendProblem p = c.shape;
  p.query = place.Input(c.query);
  p.memory_query = place.Input(c.memory_query);
  p.query_offsets = place.Input(c.query_offsets);
  std::vector<MemoryRows> rows;
  for (const AttendCase::Memory& m : c.memories) {
    rows.push_back({place.Input(m.keys), place.Input(m.values), place.Input(m.key_scales), place.Input(m.value_scales),
                    m.capacity, m.begin, m.end, m.pinned, m.kept});
  }
  const MemoryRows* const first = place.Keep(std::move(rows));
  std::vector<const MemoryRows*> pointers;
  for (const int32_t m : c.memory_of) pointers.push_back(first + m);
  p.memories = place.Keep(std::move(pointers));
  p.local_keys = place.Input(c.local_keys);
  p.local_values = place.Input(c.local_values);
  p.local_offsets = place.Input(c.local_offsets);
  p.scale = place.Input(c.scale);
  p.bias = place.Input(c.bias);
  p.decay = place.Input(c.decay);
  p.gate = place.Input(c.gate);
  p.head_top_k = place.Input(c.head_top_k);
  p.positions = place.Input(c.positions);
  const auto pairs = static_cast<size_t>(c.pairs());
  answer.output.assign(pairs * static_cast<size_t>(p.value_dim * ElementBytes(p.output_type)), 0xEE);
  answer.log_sum_exp.assign(pairs, 12345.0f);
  answer.memory_share.assign(pairs, 12345.0f);
  answer.found.assign(pairs * static_cast<size_t>(p.top_k), -7);
  answer.found_logits.assign(pairs * static_cast<size_t>(p.top_k), 12345.0f);
  p.output = place.Output(answer.output);
  p.log_sum_exp = place.Output(answer.log_sum_exp);
  p.memory_share = place.Output(answer.memory_share);
  p.found = place.Output(answer.found);
  p.found_logits = place.Output(answer.found_logits);
  return p;
}

}  // namespace mneme::cuda

#endif  // MNEME_TESTS_ATTENTION_CUDA_ATTEND_CASE_H_
