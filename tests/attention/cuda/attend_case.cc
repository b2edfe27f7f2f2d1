// SPDX-License-Identifier: Apache-2.0
#include "tests/attention/cuda/attend_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>

namespace mneme::cuda {
namespace {

int64_t Between(std::mt19937& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}
bool Chance(std::mt19937& random, double p) {
  return std::bernoulli_distribution(p)(random);
}
template <typename T>
T OneOf(std::mt19937& random, std::vector<T> choices) {
  return choices[static_cast<size_t>(Between(random, 0, static_cast<int64_t>(choices.size()) - 1))];
}

float Element(std::mt19937& random, bool exact) {
  if (exact) return static_cast<float>(Between(random, -2, 2));
  return std::normal_distribution<float>()(random);
}

void Push(std::vector<uint8_t>& bytes, uint16_t bits) {
  bytes.push_back(static_cast<uint8_t>(bits));
  bytes.push_back(static_cast<uint8_t>(bits >> 8));
}

// One row; a hidden row is NaN throughout.
void PushRow(std::mt19937& random, DType type, int64_t dim, bool exact, bool hidden, std::vector<uint8_t>& bytes,
             std::vector<float>& scales) {
  if (type == DType::kI8) {
    for (int64_t d = 0; d < dim; ++d) {
      bytes.push_back(static_cast<uint8_t>(exact ? Between(random, -3, 3) : Between(random, -127, 127)));
    }
    const float scale =
        exact ? OneOf<float>(random, {0.5f, 1.0f}) : std::ldexp(1.0f, -7) * (1.0f + Element(random, true) * 0.3f);
    scales.push_back(hidden ? std::numeric_limits<float>::quiet_NaN() : scale);
    return;
  }
  for (int64_t d = 0; d < dim; ++d) {
    const float value = hidden ? std::numeric_limits<float>::quiet_NaN() : Element(random, exact);
    Push(bytes, Narrow(type, value));
  }
}

AttendCase::Memory RandomMemory(std::mt19937& random, const AttendProblem& shape, const CaseLimits& limits) {
  AttendCase::Memory m;
  m.end = OneOf<int64_t>(random, {0, 1, 17, 128, limits.memory_rows / 3, limits.memory_rows,
                                  Between(random, 0, limits.memory_rows), Between(random, 0, limits.memory_rows)});
  m.begin = Chance(random, 0.6) ? 0 : Between(random, 0, m.end + 3);
  m.capacity = std::max(m.begin, m.end) + Between(random, 0, 20);
  m.pinned = Chance(random, 0.5) ? 0 : Between(random, 0, 40);
  m.kept = Chance(random, 0.7) ? 0 : Between(random, 0, m.end + 3);
  for (int32_t h = 0; h < shape.kv_heads; ++h) {
    for (int64_t r = 0; r < m.capacity; ++r) {
      const bool hidden = m.Hides(r);
      PushRow(random, shape.memory_type, shape.key_dim, limits.exact, hidden, m.keys, m.key_scales);
      PushRow(random, shape.memory_type, shape.value_dim, limits.exact, hidden, m.values, m.value_scales);
    }
  }
  return m;
}

void AddLocalRows(std::mt19937& random, const CaseLimits& limits, AttendCase& c) {
  AttendProblem& s = c.shape;
  c.local_offsets = {0};
  for (int32_t b = 0; b < s.batch; ++b) {
    const int64_t rows = OneOf<int64_t>(
        random, {0, 1, limits.local_rows, Between(random, 0, limits.local_rows), Between(random, 0, 40)});
    c.local_offsets.push_back(c.local_offsets.back() + rows);
    c.bounds.local_rows = std::max(c.bounds.local_rows, rows);
  }
  s.local_mask =
      OneOf<LocalMaskKind>(random, {LocalMaskKind::kNone, LocalMaskKind::kCausal, LocalMaskKind::kSlidingWindow});
  s.local_window = s.local_mask == LocalMaskKind::kSlidingWindow ? Between(random, 1, limits.local_rows) : 0;
  // Rows that no query's window reaches stay NaN.
  const auto hidden = [&](int64_t row) {
    if (s.local_mask != LocalMaskKind::kSlidingWindow) return false;
    size_t b = 0;
    while (c.local_offsets[b + 1] <= row) ++b;
    const int64_t queries = c.query_offsets[b + 1] - c.query_offsets[b];
    const int64_t newest_of_first = c.local_offsets[b + 1] - c.local_offsets[b] - queries;
    return row - c.local_offsets[b] <= newest_of_first - s.local_window;
  };
  const int64_t rows = c.local_offsets.back();
  const auto fill = [&](int64_t dim, std::vector<uint16_t>& data, int64_t& row_stride, int64_t& head_stride) {
    const int64_t gap = OneOf<int64_t>(random, {0, 8, 24});
    if (Chance(random, 0.5)) {
      head_stride = dim + gap;
      row_stride = head_stride * s.kv_heads;
    } else {
      row_stride = dim + gap;
      head_stride = row_stride * std::max<int64_t>(1, rows);
    }
    data.resize(static_cast<size_t>(std::max<int64_t>(1, rows) * s.kv_heads * (dim + gap)));
    for (uint16_t& x : data) x = Narrow(s.type, std::numeric_limits<float>::quiet_NaN());
    for (int64_t r = 0; r < rows; ++r) {
      for (int32_t h = 0; h < s.kv_heads && !hidden(r); ++h) {
        for (int64_t d = 0; d < dim; ++d) {
          data[static_cast<size_t>(r * row_stride + h * head_stride + d)] =
              Narrow(s.type, Element(random, limits.exact));
        }
      }
    }
  };
  fill(s.key_dim, c.local_keys, s.local_key_row_stride, s.local_key_head_stride);
  fill(s.value_dim, c.local_values, s.local_value_row_stride, s.local_value_head_stride);
}

void AddRanking(std::mt19937& random, AttendCase& c) {
  AttendProblem& s = c.shape;
  const auto heads = static_cast<size_t>(s.q_heads);
  if (c.exact) {
    c.scale.assign(heads, 0.25f);
    if (Chance(random, 0.5)) {
      for (size_t h = 0; h < heads; ++h) c.bias.push_back(static_cast<float>(Between(random, -4, 4)));
    }
  } else {
    if (Chance(random, 0.8)) {
      for (size_t h = 0; h < heads; ++h) {
        c.scale.push_back(OneOf<float>(random, {1.0f, 3.0f, 0.3f}) / std::sqrt(static_cast<float>(s.key_dim)));
      }
    }
    if (Chance(random, 0.4)) {
      for (size_t h = 0; h < heads; ++h) c.bias.push_back(Element(random, false));
    }
    if (Chance(random, 0.4)) {
      s.decay_beyond = OneOf<float>(random, {1.0f, 16.0f, 100.0f});
      for (size_t h = 0; h < heads; ++h) c.decay.push_back(OneOf<float>(random, {0.0f, 0.5f, 2.0f}));
      for (int64_t t = 0; t < s.tokens; ++t) c.positions.push_back(Between(random, 0, 2000));
    }
    if (Chance(random, 0.3)) s.soft_cap = OneOf<float>(random, {5.0f, 50.0f});
  }
  if (Chance(random, 0.4)) {
    for (size_t h = 0; h < heads; ++h) c.head_top_k.push_back(static_cast<int32_t>(Between(random, 0, s.top_k + 2)));
  }
  if (Chance(random, 0.4)) {
    s.fusion = Fusion::kGated;
    for (size_t h = 0; h < heads; ++h) c.gate.push_back(2.0f * Element(random, false));
  }
}

}  // namespace

AttendCase RandomCase(std::mt19937& random, const CaseLimits& limits) {
  AttendCase c;
  AttendProblem& s = c.shape;
  c.exact = limits.exact;
  s.batch = static_cast<int32_t>(Between(random, 1, limits.batch));
  s.kv_heads = static_cast<int32_t>(Between(random, 1, 2));
  s.q_heads = s.kv_heads * OneOf<int32_t>(random, {1, 1, 2, 3, 4, 5, 8});
  s.key_dim = OneOf<int32_t>(random, {64, 64, 128, 256});
  s.value_dim = OneOf<int32_t>(random, {64, 64, 128, 256});
  s.top_k = OneOf<int32_t>(random, {1, 5, 32, 32, 64, 65, 256, 0});
  s.type = OneOf<DType>(random, {DType::kF16, DType::kBF16});
  s.memory_type = Chance(random, 0.3) ? DType::kI8 : s.type;
  s.output_type = OneOf<DType>(random, {DType::kF32, DType::kF16, DType::kBF16});

  const bool prefill = Chance(random, 0.35);
  c.query_offsets = {0};
  for (int32_t b = 0; b < s.batch; ++b) {
    const int64_t queries = prefill ? Between(random, 0, limits.queries) : Chance(random, 0.8) ? 1 : 0;
    c.query_offsets.push_back(c.query_offsets.back() + queries);
    c.bounds.queries = std::max(c.bounds.queries, queries);
  }
  s.tokens = c.query_offsets.back();
  const auto fill = [&](std::vector<uint16_t>& data) {
    for (int64_t i = 0; i < s.tokens * s.q_heads * s.key_dim; ++i) {
      data.push_back(Narrow(s.type, Element(random, limits.exact)));
    }
  };
  fill(c.query);
  if (Chance(random, 0.3)) fill(c.memory_query);

  const int64_t memories = Between(random, 1, s.batch);
  for (int64_t m = 0; m < memories; ++m) {
    c.memories.push_back(RandomMemory(random, s, limits));
    c.bounds.memory_rows = std::max(c.bounds.memory_rows, c.memories.back().end);
  }
  for (int32_t b = 0; b < s.batch; ++b) {
    c.memory_of.push_back(static_cast<int32_t>(b < memories ? b : Between(random, 0, memories - 1)));
  }
  if (Chance(random, 0.75) || s.top_k == 0) AddLocalRows(random, limits, c);
  AddRanking(random, c);
  // Bounds that are exceeded cost time, not rightness.
  if (Chance(random, 0.2)) c.bounds.memory_rows /= 3;
  if (Chance(random, 0.2)) c.bounds.local_rows /= 3;
  if (Chance(random, 0.2)) c.bounds.queries = 1;
  c.bounds.memory_grows = Chance(random, 0.2);
  c.room.blocks = Between(random, 1, 64);
  return c;
}

std::string AttendCase::Description() const {
  const char* const types[] = {"f32", "f16", "bf16", "i8"};
  const auto type = [&](DType t) { return types[static_cast<int>(t)]; };
  std::ostringstream text;
  text << "batch " << shape.batch << ", tokens " << shape.tokens << ", heads " << shape.q_heads << "/" << shape.kv_heads
       << ", dims " << shape.key_dim << "/" << shape.value_dim << ", top_k " << shape.top_k << ", " << type(shape.type)
       << " memory " << type(shape.memory_type) << " output " << type(shape.output_type) << ", rows";
  for (const Memory& m : memories) {
    text << " " << m.begin << ".." << m.end;
    if (m.kept > m.pinned) text << " without " << m.pinned << ".." << m.kept;
  }
  if (!local_offsets.empty()) {
    text << ", local " << local_offsets.back() << " mask " << static_cast<int>(shape.local_mask);
  }
  text << ", soft_cap " << shape.soft_cap << (bias.empty() ? "" : ", bias") << (decay.empty() ? "" : ", decay")
       << (head_top_k.empty() ? "" : ", head_top_k") << (shape.fusion == Fusion::kGated ? ", gated" : "")
       << (exact ? ", exact" : "");
  return text.str();
}

}  // namespace mneme::cuda
