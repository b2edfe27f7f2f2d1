// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "attention/reference.h"
#include "gtest/gtest.h"
#include "tests/attention/cuda/attend_reference.h"
#include "tests/attention/cuda/emulated_attend.h"

// The whole of both kernels, by emulation, against the double-precision definition.
namespace mneme::cuda {
namespace {

uint32_t Seed(uint32_t fallback) {
  const char* const wish = std::getenv("MNEME_TEST_SEED");
  return wish == nullptr ? fallback : static_cast<uint32_t>(std::strtoul(wish, nullptr, 10));
}

template <int kSearchWarps, int kFinishWarps>
std::string Try(const AttendCase& c, uint32_t seed, AttendErrors* errors) {
  HostPlace place;
  AttendAnswer answer;
  const AttendProblem problem = Placed(c, place, answer);
  if (std::string wrong = CheckProblem(problem, c.bounds); !wrong.empty()) return "refused: " + wrong;
  EmulatedAttend<kSearchWarps, kFinishWarps>(problem, PlanAttend(problem, c.bounds, c.room, kSearchWarps), seed);
  if (c.pairs() == 0) return "";
  return Compare(c, answer, c.pairs(), errors);
}

void TryMany(uint32_t fallback_seed, int cases, const CaseLimits& limits) {
  const uint32_t seed = Seed(fallback_seed);
  std::mt19937 random(seed);
  AttendErrors errors;
  for (int i = 0; i < cases; ++i) {
    const AttendCase c = RandomCase(random, limits);
    SCOPED_TRACE("seed " + std::to_string(seed) + ", case " + std::to_string(i) + ": " + c.Description());
    ASSERT_EQ((Try<8, 4>(c, seed + static_cast<uint32_t>(i), &errors)), "");
  }
  std::printf("[ GREATEST ] error by its bound: output %.3f, log-sum-exp %.3f, logit %.3f\n", errors.output,
              errors.log_sum_exp, errors.logit);
}

TEST(CudaAttendTest, AgreesWithTheReference) {
  TryMany(1, 50, CaseLimits{});
}

TEST(CudaAttendTest, FindsTheSameRowsWhereLogitsAreExactAndTiesMany) {
  CaseLimits limits;
  limits.exact = true;
  TryMany(2, 25, limits);
}

template <int kSearchWarps>
AttendAnswer Answer(const AttendCase& c, uint32_t seed) {
  HostPlace place;
  AttendAnswer answer;
  const AttendProblem problem = Placed(c, place, answer);
  EmulatedAttend<kSearchWarps, 4>(problem, PlanAttend(problem, c.bounds, c.room, kSearchWarps), seed);
  return answer;
}

TEST(CudaAttendTest, TheSameBitsWhateverTheOrderOfThreadsAndTheCutOfTheWork) {
  std::mt19937 random(Seed(3));
  for (int i = 0; i < 6; ++i) {
    AttendCase c = RandomCase(random, CaseLimits{});
    SCOPED_TRACE(c.Description());
    const AttendAnswer first = Answer<8>(c, 1);
    c.room.blocks = i % 2 == 0 ? 1 : 1000;
    const AttendAnswer second = Answer<8>(c, 2);
    EXPECT_EQ(first.found, second.found);
    EXPECT_EQ(first.found_logits, second.found_logits);
    EXPECT_EQ(first.output, second.output);
    EXPECT_EQ(first.log_sum_exp, second.log_sum_exp);
    EXPECT_EQ(first.memory_share, second.memory_share);
  }
}

TEST(CudaAttendTest, WithKBeyondTheMemoryItIsDenseAttention) {
  std::mt19937 random(Seed(4));
  CaseLimits limits;
  limits.memory_rows = 200;
  for (int found = 0; found < 4;) {
    const AttendCase c = RandomCase(random, limits);
    const AttendProblem& s = c.shape;
    if (s.top_k != 256 || !c.head_top_k.empty() || s.tokens == 0 || s.fusion != Fusion::kJoint) continue;
    ++found;
    AttendErrors errors;
    ASSERT_EQ((Try<8, 4>(c, 5, &errors)), "") << c.Description();
    const AttendAnswer answer = Answer<8>(c, 6);
    int64_t rows = 0;
    for (const int64_t row : answer.found) rows += row >= 0 ? 1 : 0;
    int64_t expected = 0;
    for (int64_t pair = 0; pair < c.pairs(); ++pair) {
      for (const double logit : Reference(c, pair).logits) expected += std::isfinite(logit) ? 1 : 0;
    }
    EXPECT_EQ(rows, expected);
  }
}

// One sequence, one head, f16, with everything at hand to be spoilt.
AttendCase Plain(int64_t rows, int64_t local_rows) {
  AttendCase c;
  AttendProblem& s = c.shape;
  s.tokens = s.batch = s.q_heads = s.kv_heads = 1;
  s.key_dim = s.value_dim = 64;
  s.top_k = 4;
  c.query_offsets = {0, 1};
  c.query.assign(64, F32ToF16(1.0f));
  AttendCase::Memory m;
  m.capacity = m.end = rows;
  m.keys.assign(static_cast<size_t>(rows) * 128, 0);
  m.values.assign(static_cast<size_t>(rows) * 128, 0);
  c.memories = {m};
  c.memory_of = {0};
  c.bounds.memory_rows = rows;
  if (local_rows > 0) {
    c.local_keys.assign(static_cast<size_t>(local_rows) * 64, 0);
    c.local_values.assign(static_cast<size_t>(local_rows) * 64, F32ToF16(1.0f));
    c.local_offsets = {0, local_rows};
    s.local_key_row_stride = s.local_value_row_stride = s.local_key_head_stride = s.local_value_head_stride = 64;
    c.bounds.local_rows = local_rows;
  }
  return c;
}

void SetKey(AttendCase& c, int64_t row, uint16_t bits) {
  for (int64_t d = 0; d < 64; ++d) {
    c.memories[0].keys[static_cast<size_t>(row * 128 + 2 * d)] = static_cast<uint8_t>(bits);
    c.memories[0].keys[static_cast<size_t>(row * 128 + 2 * d + 1)] = static_cast<uint8_t>(bits >> 8);
  }
}

TEST(CudaAttendTest, RowsOfNaNAreNeverFound) {
  AttendCase c = Plain(20, 0);
  for (const int64_t row : {0, 3, 19}) SetKey(c, row, 0x7E00);
  SetKey(c, 7, F32ToF16(0.5f));
  SetKey(c, 2, F32ToF16(-0.5f));
  const AttendAnswer answer = Answer<8>(c, 1);
  EXPECT_EQ(answer.found, (std::vector<int64_t>{7, 1, 4, 5})) << "equal logits by the lower index";
  EXPECT_EQ(answer.found_logits, (std::vector<float>{32, 0, 0, 0}));
}

TEST(CudaAttendTest, AnInfiniteLogitMakesNaNAndIsNotHidden) {
  AttendCase c = Plain(20, 5);
  SetKey(c, 7, 0x7C00);
  const AttendAnswer answer = Answer<8>(c, 1);
  EXPECT_EQ(answer.found[0], 7);
  EXPECT_NE(answer.log_sum_exp[0], answer.log_sum_exp[0]);
  const float output = LoadElement(DType::kF32, answer.output.data(), 0);
  EXPECT_NE(output, output);
}

TEST(CudaAttendTest, ANaNInAVisibleLocalRowIsNotHidden) {
  AttendCase c = Plain(20, 5);
  c.local_keys[64] = 0x7E00;
  const AttendAnswer answer = Answer<8>(c, 1);
  EXPECT_NE(answer.log_sum_exp[0], answer.log_sum_exp[0]);
}

TEST(CudaAttendTest, NothingToSeeIsTheEmptyState) {
  AttendCase c = Plain(20, 0);
  c.memories[0].begin = c.memories[0].end;
  const AttendAnswer answer = Answer<8>(c, 1);
  EXPECT_EQ(answer.found, (std::vector<int64_t>{-1, -1, -1, -1}));
  EXPECT_EQ(answer.log_sum_exp[0], -Infinity());
  EXPECT_EQ(answer.memory_share[0], 0.0f);
  for (int64_t d = 0; d < 64; ++d) EXPECT_EQ(LoadElement(DType::kF32, answer.output.data(), d), 0.0f);
}

TEST(CudaAttendTest, MinusInfinityWeighsNothing) {
  AttendCase c = Plain(3, 4);
  for (const int64_t row : {0, 1, 2}) SetKey(c, row, 0xFC00);
  const AttendAnswer answer = Answer<8>(c, 1);
  EXPECT_EQ(answer.found, (std::vector<int64_t>{0, 1, 2, -1}));
  EXPECT_EQ(answer.memory_share[0], 0.0f);
  EXPECT_FLOAT_EQ(answer.log_sum_exp[0], std::log(4.0f));
  EXPECT_EQ(LoadElement(DType::kF32, answer.output.data(), 0), 1.0f);
}

TEST(CudaAttendTest, ManyRowsOfOneLogitFillTheCandidatesAndTheLowestWin) {
  for (const int32_t top_k : {1, 64, 65, 256}) {
    AttendCase c = Plain(1200, 0);
    // All columns of the block fill up at once: what one writes too far is another's, or the guard's.
    c.shape.q_heads = 8;
    c.query.assign(8 * 64, F32ToF16(1.0f));
    c.shape.top_k = top_k;
    const auto expect = [&](int64_t first, int64_t step) {
      const AttendAnswer answer = Answer<8>(c, 1);
      for (int64_t i = 0; i < 8 * top_k; ++i) {
        ASSERT_EQ(answer.found[static_cast<size_t>(i)], first + step * (i % top_k)) << "top_k " << top_k;
      }
    };
    // Later rows are no worse than earlier ones, so that only the index excludes each of them.
    expect(0, 1);
    // Each better than the one before: every row enters, every candidate but the last k is dropped.
    for (int64_t row = 0; row < 1200; ++row) SetKey(c, row, F32ToF16(static_cast<float>(row)));
    expect(1199, -1);
  }
}

// The definition that these tests go by is that of attention/.
TEST(CudaAttendReferenceTest, IsTheReferenceOfAttention) {
  std::mt19937 random(Seed(7));
  int compared = 0;
  while (compared < 200) {
    const AttendCase c = RandomCase(random, CaseLimits{});
    const AttendProblem& s = c.shape;
    if (s.type != DType::kBF16 || s.memory_type != s.type) continue;
    for (int64_t pair = 0; pair < c.pairs(); pair += 3, ++compared) {
      const auto head = static_cast<size_t>(pair % s.q_heads);
      const int64_t token = pair / s.q_heads;
      size_t sequence = 0;
      while (c.query_offsets[sequence + 1] <= token) ++sequence;
      const auto row = [&](const std::vector<uint16_t>& data, int64_t first, int64_t dim) {
        std::vector<double> result;
        for (int64_t d = 0; d < dim; ++d) {
          result.push_back(static_cast<double>(BF16ToF32(data[static_cast<size_t>(first + d)])));
        }
        return result;
      };
      reference::Problem p;
      p.query = row(c.query, pair * s.key_dim, s.key_dim);
      p.memory_query = c.memory_query.empty() ? p.query : row(c.memory_query, pair * s.key_dim, s.key_dim);
      const AttendCase::Memory& m = c.memories[static_cast<size_t>(c.memory_of[sequence])];
      std::vector<uint16_t> keys(m.keys.size() / 2), values(m.values.size() / 2);
      std::memcpy(keys.data(), m.keys.data(), m.keys.size());
      std::memcpy(values.data(), m.values.data(), m.values.size());
      const auto kv_head = static_cast<int64_t>(head) / (s.q_heads / s.kv_heads);
      for (int64_t r = m.begin; r < m.end; ++r) {
        if (m.Hides(r)) continue;
        p.memory_keys.push_back(row(keys, (kv_head * m.capacity + r) * s.key_dim, s.key_dim));
        p.memory_values.push_back(row(values, (kv_head * m.capacity + r) * s.value_dim, s.value_dim));
        p.memory_token.push_back(r);
        p.memory_position.push_back(r);
        p.memory_pinned.push_back(r < m.pinned);
      }
      if (!c.local_offsets.empty()) {
        const int64_t first = c.local_offsets[sequence], rows = c.local_offsets[sequence + 1] - first;
        const int64_t queries = c.query_offsets[sequence + 1] - c.query_offsets[sequence];
        const LocalMaskKind mask = s.local_mask;
        for (int64_t j = 0; j < rows; ++j) {
          p.local_keys.push_back(
              row(c.local_keys, (first + j) * s.local_key_row_stride + kv_head * s.local_key_head_stride, s.key_dim));
          p.local_values.push_back(row(c.local_values,
                                       (first + j) * s.local_value_row_stride + kv_head * s.local_value_head_stride,
                                       s.value_dim));
          p.local_visible.push_back(
              LocalVisible(mask, s.local_window, token - c.query_offsets[sequence], queries, j, rows));
        }
      }
      p.value_dim = s.value_dim;
      p.query_position = c.positions.empty() ? 0 : c.positions[static_cast<size_t>(token)];
      p.top_k = c.head_top_k.empty() ? s.top_k : std::min(s.top_k, c.head_top_k[head]);
      const auto of = [&](const std::vector<float>& array, double none) {
        return array.empty() ? none : static_cast<double>(array[head]);
      };
      p.scale = of(c.scale, 1);
      p.memory_bias = of(c.bias, 0);
      p.decay = of(c.decay, 0);
      p.gate = of(c.gate, 0);
      p.soft_cap = static_cast<double>(s.soft_cap);
      p.decay_beyond = static_cast<double>(s.decay_beyond);
      p.fusion = s.fusion;
      const reference::Result expected = reference::Attend(p);
      const ReferenceRow actual = Reference(c, pair);
      SCOPED_TRACE(c.Description());
      ASSERT_EQ(actual.found, expected.tokens);
      ASSERT_EQ(actual.output.size(), expected.state.output.size());
      for (size_t d = 0; d < actual.output.size(); ++d) {
        ASSERT_NEAR(actual.output[d], expected.state.output[d], 1e-12 * (1 + std::fabs(expected.state.output[d])));
      }
      if (expected.state.log_sum_exp != actual.log_sum_exp) {
        ASSERT_NEAR(actual.log_sum_exp, expected.state.log_sum_exp, 1e-12 * (1 + std::fabs(actual.log_sum_exp)));
      }
      ASSERT_NEAR(actual.memory_share, expected.memory_mass, 1e-12);
    }
  }
}

}  // namespace
}  // namespace mneme::cuda
