// SPDX-License-Identifier: Apache-2.0
#include "tests/attention/cuda/attend_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace mneme::cuda {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Where {
  int32_t sequence, head, kv_head;
  int64_t token, query, queries;
};

Where WhereIs(const AttendCase& c, int64_t pair) {
  Where w;
  w.token = pair / c.shape.q_heads;
  w.head = static_cast<int32_t>(pair % c.shape.q_heads);
  w.kv_head = w.head / (c.shape.q_heads / c.shape.kv_heads);
  w.sequence = 0;
  while (c.query_offsets[static_cast<size_t>(w.sequence) + 1] <= w.token) ++w.sequence;
  w.query = w.token - c.query_offsets[static_cast<size_t>(w.sequence)];
  w.queries = c.query_offsets[static_cast<size_t>(w.sequence) + 1] - c.query_offsets[static_cast<size_t>(w.sequence)];
  return w;
}

// Row `row` of an encoded array of rows of `dim` elements.
std::vector<double> MemoryRow(DType type, const std::vector<uint8_t>& bytes, const std::vector<float>& scales,
                              int64_t row, int64_t dim) {
  std::vector<double> result;
  for (int64_t d = 0; d < dim; ++d) {
    const auto at = static_cast<size_t>(row * dim + d);
    if (type == DType::kI8) {
      result.push_back(static_cast<int8_t>(bytes[at]) * static_cast<double>(scales[static_cast<size_t>(row)]));
    } else {
      const auto bits = static_cast<uint16_t>(bytes[2 * at] | bytes[2 * at + 1] << 8);
      result.push_back(static_cast<double>(Widen(type, bits)));
    }
  }
  return result;
}

std::vector<double> Row16(DType type, const std::vector<uint16_t>& data, int64_t first, int64_t dim) {
  std::vector<double> result;
  for (int64_t d = 0; d < dim; ++d) {
    result.push_back(static_cast<double>(Widen(type, data[static_cast<size_t>(first + d)])));
  }
  return result;
}

double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}
double Magnitude(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::fabs(a[i] * b[i]);
  return sum;
}
double Cap(double score, double cap) {
  return cap > 0 ? cap * std::tanh(score / cap) : score;
}

struct State {
  double log_sum_exp = -kInfinity;
  std::vector<double> output;
};
State Softmax(const std::vector<double>& logits, const std::vector<std::vector<double>>& values, int64_t dim) {
  State state;
  state.output.assign(static_cast<size_t>(dim), 0.0);
  if (logits.empty()) return state;
  const double greatest = *std::max_element(logits.begin(), logits.end());
  double mass = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp(logits[i] - greatest);
    mass += weight;
    for (size_t d = 0; d < state.output.size(); ++d) state.output[d] += weight * values[i][d];
  }
  for (double& x : state.output) x /= mass;
  state.log_sum_exp = greatest + std::log(mass);
  return state;
}

State Local(const AttendCase& c, const Where& w, double* magnitude) {
  const AttendProblem& s = c.shape;
  std::vector<double> logits;
  std::vector<std::vector<double>> values;
  *magnitude = 0;
  if (!c.local_offsets.empty()) {
    const double scale = c.scale.empty() ? 1.0 : static_cast<double>(c.scale[static_cast<size_t>(w.head)]);
    const auto query = Row16(s.type, c.query, (w.token * s.q_heads + w.head) * s.key_dim, s.key_dim);
    const int64_t first = c.local_offsets[static_cast<size_t>(w.sequence)];
    const int64_t rows = c.local_offsets[static_cast<size_t>(w.sequence) + 1] - first;
    for (int64_t j = 0; j < rows; ++j) {
      const int64_t newest = w.query + rows - w.queries;
      if (s.local_mask != LocalMaskKind::kNone && j > newest) continue;
      if (s.local_mask == LocalMaskKind::kSlidingWindow && j <= newest - s.local_window) continue;
      const auto key = Row16(s.type, c.local_keys,
                             (first + j) * s.local_key_row_stride + w.kv_head * s.local_key_head_stride, s.key_dim);
      logits.push_back(Cap(scale * Dot(query, key), static_cast<double>(s.soft_cap)));
      *magnitude = std::max(*magnitude, scale * Magnitude(query, key));
      values.push_back(Row16(s.type, c.local_values,
                             (first + j) * s.local_value_row_stride + w.kv_head * s.local_value_head_stride,
                             s.value_dim));
    }
  }
  return Softmax(logits, values, s.value_dim);
}

int64_t TopK(const AttendCase& c, int32_t head) {
  if (c.head_top_k.empty()) return c.shape.top_k;
  return std::clamp(c.head_top_k[static_cast<size_t>(head)], 0, c.shape.top_k);
}

}  // namespace

ReferenceRow Reference(const AttendCase& c, int64_t pair) {
  const AttendProblem& s = c.shape;
  const Where w = WhereIs(c, pair);
  const AttendCase::Memory& m = c.memories[static_cast<size_t>(c.memory_of[static_cast<size_t>(w.sequence)])];
  const auto head = static_cast<size_t>(w.head);
  const double scale = c.scale.empty() ? 1.0 : static_cast<double>(c.scale[head]);
  const double bias = c.bias.empty() ? 0.0 : static_cast<double>(c.bias[head]);
  const double decay = c.decay.empty() ? 0.0 : static_cast<double>(c.decay[head]);
  const auto query = Row16(s.type, c.memory_query.empty() ? c.query : c.memory_query, pair * s.key_dim, s.key_dim);
  ReferenceRow result;
  std::vector<int64_t> visible;
  for (int64_t r = m.begin; r < m.end; ++r) {
    if (m.Hides(r)) {
      result.logits.push_back(-kInfinity);
      result.magnitudes.push_back(0);
      continue;
    }
    visible.push_back(r);
    const auto key = MemoryRow(s.memory_type, m.keys, m.key_scales, w.kv_head * m.capacity + r, s.key_dim);
    double logit = Cap(scale * Dot(query, key), static_cast<double>(s.soft_cap));
    if (r >= m.pinned) {
      logit += bias;
      if (decay != 0) {
        const double ratio =
            static_cast<double>(c.positions[static_cast<size_t>(w.token)] - r) / static_cast<double>(s.decay_beyond);
        logit -= decay * std::max(0.0, ratio > 0 ? std::log2(ratio) : 0.0);
      }
    }
    result.logits.push_back(logit);
    result.magnitudes.push_back(scale * Magnitude(query, key) + std::fabs(bias) + 20 * std::fabs(decay));
  }
  const auto k = std::min(static_cast<size_t>(TopK(c, w.head)), visible.size());
  const auto better = [&](int64_t a, int64_t b) {
    const double x = result.logits[static_cast<size_t>(a - m.begin)];
    const double y = result.logits[static_cast<size_t>(b - m.begin)];
    return x > y || (x == y && a < b);
  };
  std::partial_sort(visible.begin(), visible.begin() + static_cast<int64_t>(k), visible.end(), better);
  visible.resize(k);
  result.found = visible;
  AttendToFound(c, pair, result);
  return result;
}

void AttendToFound(const AttendCase& c, int64_t pair, ReferenceRow& result) {
  const AttendProblem& s = c.shape;
  const Where w = WhereIs(c, pair);
  const AttendCase::Memory& m = c.memories[static_cast<size_t>(c.memory_of[static_cast<size_t>(w.sequence)])];
  std::vector<double> logits;
  std::vector<std::vector<double>> values;
  for (const int64_t r : result.found) {
    logits.push_back(result.logits[static_cast<size_t>(r - m.begin)]);
    values.push_back(MemoryRow(s.memory_type, m.values, m.value_scales, w.kv_head * m.capacity + r, s.value_dim));
  }
  const State memory = Softmax(logits, values, s.value_dim);
  double magnitude;
  const State local = Local(c, w, &magnitude);
  const double greatest = std::max(memory.log_sum_exp, local.log_sum_exp);
  double of_memory = 0, of_local = 0;
  result.log_sum_exp = -kInfinity;
  if (greatest != -kInfinity) {
    const double a = std::exp(memory.log_sum_exp - greatest), b = std::exp(local.log_sum_exp - greatest);
    of_memory = a / (a + b);
    of_local = b / (a + b);
    result.log_sum_exp = greatest + std::log(a + b);
  }
  if (s.fusion == Fusion::kGated) {
    of_memory = 1 / (1 + std::exp(-static_cast<double>(c.gate[static_cast<size_t>(w.head)])));
    of_local = 1 - of_memory;
  }
  result.memory_share = of_memory;
  result.output.clear();
  for (size_t d = 0; d < memory.output.size(); ++d) {
    result.output.push_back(of_memory * memory.output[d] + of_local * local.output[d]);
  }
}

std::string Compare(const AttendCase& c, const AttendAnswer& answer, int64_t most_pairs, AttendErrors* errors) {
  const AttendProblem& s = c.shape;
  for (int64_t pair = 0; pair < c.pairs(); pair += CeilDivide(c.pairs(), most_pairs)) {
    const Where w = WhereIs(c, pair);
    const AttendCase::Memory& m = c.memories[static_cast<size_t>(c.memory_of[static_cast<size_t>(w.sequence)])];
    const ReferenceRow best = Reference(c, pair);
    const auto fail = [&](const std::string& what) {
      return "token " + std::to_string(w.token) + " head " + std::to_string(w.head) + ": " + what;
    };
    double magnitude = 1;
    for (const double x : best.magnitudes) magnitude = std::max(magnitude, x);
    double local_magnitude;
    Local(c, w, &local_magnitude);
    magnitude = std::max(magnitude, local_magnitude);
    const double logit_bound = c.exact ? 0 : 1e-6 * (1 + magnitude);

    // The rows found.
    std::vector<int64_t> found;
    std::vector<bool> taken(best.logits.size());
    double least = kInfinity;
    for (int64_t i = 0; i < s.top_k; ++i) {
      const auto at = static_cast<size_t>(pair * s.top_k + i);
      const int64_t row = answer.found[at];
      const auto logit = static_cast<double>(answer.found_logits[at]);
      if (i >= static_cast<int64_t>(best.found.size())) {
        if (row != -1 || logit != -kInfinity)
          return fail("place " + std::to_string(i) + " is not padded: " + std::to_string(row));
        continue;
      }
      if (m.Hides(row))
        return fail("row " + std::to_string(row) + " at place " + std::to_string(i) + " is not visible");
      const auto number = static_cast<size_t>(row - m.begin);
      if (taken[number]) return fail("row " + std::to_string(row) + " twice");
      taken[number] = true;
      const double error = std::fabs(logit - best.logits[number]);
      if (logit_bound > 0) errors->logit = std::max(errors->logit, error / logit_bound);
      if (!(error <= logit_bound)) {
        return fail("row " + std::to_string(row) + " has logit " + std::to_string(best.logits[number]) + ", not " +
                    std::to_string(logit));
      }
      if (i > 0) {
        const auto before = static_cast<double>(answer.found_logits[at - 1]);
        if (logit > before || (logit == before && row < answer.found[at - 1]))
          return fail("place " + std::to_string(i) + " is out of order");
      }
      if (c.exact && row != best.found[static_cast<size_t>(i)]) {
        return fail("place " + std::to_string(i) + " holds row " + std::to_string(row) + ", not " +
                    std::to_string(best.found[static_cast<size_t>(i)]));
      }
      least = std::min(least, best.logits[number]);
      found.push_back(row);
    }
    for (size_t i = 0; i < taken.size() && !found.empty(); ++i) {
      if (!taken[i] && best.logits[i] > least + 2 * logit_bound) {
        return fail("row " + std::to_string(m.begin + static_cast<int64_t>(i)) + " is better than one that was found");
      }
    }

    // The output.
    ReferenceRow expected = best;
    expected.found = found;
    AttendToFound(c, pair, expected);
    const double relative = s.output_type == DType::kF32 ? 0 : s.output_type == DType::kF16 ? 5e-4 : 4e-3;
    for (int64_t d = 0; d < s.value_dim; ++d) {
      const auto x = static_cast<double>(LoadElement(s.output_type, answer.output.data(), pair * s.value_dim + d));
      const double bound = 3e-6 * (1 + magnitude) * 4 + relative * std::fabs(expected.output[static_cast<size_t>(d)]);
      const double error = std::fabs(x - expected.output[static_cast<size_t>(d)]);
      errors->output = std::max(errors->output, error / bound);
      if (!(error <= bound)) {
        return fail("output[" + std::to_string(d) + "] is " + std::to_string(x) + ", not " +
                    std::to_string(expected.output[static_cast<size_t>(d)]));
      }
    }
    const auto sum = static_cast<double>(answer.log_sum_exp[static_cast<size_t>(pair)]);
    if (expected.log_sum_exp == -kInfinity ? sum != -kInfinity
                                           : !(std::fabs(sum - expected.log_sum_exp) <= 2e-6 * (1 + magnitude))) {
      return fail("log-sum-exp is " + std::to_string(sum) + ", not " + std::to_string(expected.log_sum_exp));
    }
    if (expected.log_sum_exp != -kInfinity) {
      errors->log_sum_exp =
          std::max(errors->log_sum_exp, std::fabs(sum - expected.log_sum_exp) / (2e-6 * (1 + magnitude)));
    }
    const auto share = static_cast<double>(answer.memory_share[static_cast<size_t>(pair)]);
    if (!(std::fabs(share - expected.memory_share) <= 4e-6 * (1 + magnitude))) {
      return fail("the memory's share is " + std::to_string(share) + ", not " + std::to_string(expected.memory_share));
    }
  }
  return "";
}

}  // namespace mneme::cuda
