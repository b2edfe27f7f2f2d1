// SPDX-License-Identifier: Apache-2.0
#include "attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace mneme::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What a memory row's logit gets beside its score: the head's bias and the decay by age.
double Bias(const Problem& problem, size_t row) {
  if (problem.memory_pinned[row]) return 0;
  const double age = static_cast<double>(problem.query_position - problem.memory_token[row]);
  const double doublings = age > problem.decay_beyond ? std::log2(age / problem.decay_beyond) : 0;
  return problem.memory_bias - problem.decay * doublings;
}

// The query, rotated so that its product with the unrotated key of `row` is the policy's score.
std::vector<double> QueryFor(const Problem& problem, size_t row) {
  const std::optional<double> distance = DistanceTo(problem, row);
  if (!distance.has_value()) return problem.memory_query;
  // The magnitude applies to both sides: Rotate applies the query's, this the key's.
  std::vector<double> query = Rotate(problem.rotary, *distance, problem.memory_query);
  const auto rotated =
      problem.rotary.layout == RotaryLayout::kNone ? size_t{0} : 2 * problem.rotary.inverse_frequencies.size();
  for (size_t i = 0; i < rotated; ++i) query[i] *= static_cast<double>(problem.rotary.magnitude);
  return query;
}

}  // namespace

State Softmax(const std::vector<double>& logits, const std::vector<std::vector<double>>& values, int64_t value_dim,
              const std::function<bool(int64_t)>& visible) {
  State state{std::vector<double>(static_cast<size_t>(value_dim), 0.0), -kInfinity};
  double greatest = -kInfinity;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (visible(static_cast<int64_t>(i))) greatest = std::max(greatest, logits[i]);
  }
  if (greatest == -kInfinity) return state;
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!visible(static_cast<int64_t>(i))) continue;
    const double weight = std::exp(logits[i] - greatest);
    sum += weight;
    for (size_t d = 0; d < state.output.size(); ++d) state.output[d] += weight * values[i][d];
  }
  for (double& x : state.output) x /= sum;
  state.log_sum_exp = greatest + std::log(sum);
  return state;
}

State Merge(const State& a, const State& b) {
  const double greatest = std::max(a.log_sum_exp, b.log_sum_exp);
  if (greatest == -kInfinity) return a;
  const double mass_a = std::exp(a.log_sum_exp - greatest);
  const double mass_b = std::exp(b.log_sum_exp - greatest);
  State merged{a.output, greatest + std::log(mass_a + mass_b)};
  for (size_t i = 0; i < merged.output.size(); ++i) {
    merged.output[i] = (mass_a * a.output[i] + mass_b * b.output[i]) / (mass_a + mass_b);
  }
  return merged;
}

std::vector<double> Gate(const State& memory, const State& local, double gate) {
  const double of_memory = 1 / (1 + std::exp(-gate));
  const double of_local = 1 / (1 + std::exp(gate));
  std::vector<double> output(local.output.size());
  for (size_t i = 0; i < output.size(); ++i) output[i] = of_memory * memory.output[i] + of_local * local.output[i];
  return output;
}

double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

double SoftCap(double score, double soft_cap) {
  return soft_cap == 0 ? score : soft_cap * std::tanh(score / soft_cap);
}

std::vector<double> Rotate(const Rotary& rotary, double position, std::vector<double> row) {
  const size_t pairs = rotary.inverse_frequencies.size();
  if (rotary.layout == RotaryLayout::kNone) return row;
  for (size_t i = 0; i < pairs; ++i) {
    const bool halves = rotary.layout == RotaryLayout::kHalves;
    double& first = row[halves ? i : 2 * i];
    double& second = row[halves ? i + pairs : 2 * i + 1];
    const double angle = position * static_cast<double>(rotary.inverse_frequencies[i]);
    const double magnitude = static_cast<double>(rotary.magnitude);
    const double x = first, y = second;
    first = magnitude * (x * std::cos(angle) - y * std::sin(angle));
    second = magnitude * (x * std::sin(angle) + y * std::cos(angle));
  }
  return row;
}

double SoftCapSlope(double score, double soft_cap) {
  if (soft_cap == 0) return 1;
  const double x = std::tanh(score / soft_cap);
  return 1 - x * x;
}

std::vector<double> RotateTransposed(const Rotary& rotary, double position, std::vector<double> row) {
  // A rotation's transpose is the rotation by the opposite angle; the magnitude is a factor of both.
  return Rotate(rotary, -position, std::move(row));
}

std::vector<int64_t> TopK(const std::vector<double>& logits, int64_t k) {
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<size_t>(std::max<int64_t>(k, 0))));
  return order;
}

std::optional<double> DistanceTo(const Problem& problem, size_t memory_row) {
  switch (problem.policy) {
    case PositionPolicy::kNone: return std::nullopt;
    case PositionPolicy::kFixedDistance:
    case PositionPolicy::kWindowStart: return problem.distance;
    case PositionPolicy::kClamped: break;
  }
  return std::min(static_cast<double>(problem.query_position - problem.memory_position[memory_row]), problem.distance);
}

RowScores Score(const Problem& problem) {
  RowScores rows;
  for (size_t i = 0; i < problem.memory_keys.size(); ++i) {
    rows.memory_scores.push_back(problem.scale * Dot(QueryFor(problem, i), problem.memory_keys[i]));
    rows.memory_logits.push_back(SoftCap(rows.memory_scores.back(), problem.soft_cap) + Bias(problem, i));
  }
  for (const std::vector<double>& key : problem.local_keys) {
    rows.local_scores.push_back(problem.scale * Dot(problem.query, key));
    rows.local_logits.push_back(SoftCap(rows.local_scores.back(), problem.soft_cap));
  }
  return rows;
}

Result Attend(const Problem& problem) {
  Result result;
  const RowScores rows = Score(problem);
  std::vector<std::vector<double>> retrieved_values;
  for (const int64_t i : TopK(rows.memory_logits, problem.top_k)) {
    const auto row = static_cast<size_t>(i);
    result.tokens.push_back(problem.memory_token[row]);
    result.logits.push_back(rows.memory_logits[row]);
    retrieved_values.push_back(problem.memory_values[row]);
  }
  const State memory = Softmax(result.logits, retrieved_values, problem.value_dim, [](int64_t) { return true; });
  const State local = Softmax(rows.local_logits, problem.local_values, problem.value_dim,
                              [&](int64_t i) { return problem.local_visible[static_cast<size_t>(i)]; });

  const State joint = Merge(memory, local);
  switch (problem.fusion) {
    case Fusion::kJoint:
      result.state = joint;
      result.memory_mass = memory.log_sum_exp == -kInfinity ? 0 : std::exp(memory.log_sum_exp - joint.log_sum_exp);
      break;
    case Fusion::kGated:
      result.state = {Gate(memory, local, problem.gate), joint.log_sum_exp};
      result.memory_mass = 1 / (1 + std::exp(-problem.gate));
      break;
    case Fusion::kMemoryOnly:
      result.state = memory;
      result.memory_mass = memory.log_sum_exp == -kInfinity ? 0 : 1;
      break;
    case Fusion::kLocalOnly:
      result.state = local;
      result.memory_mass = 0;
      break;
  }
  return result;
}

}  // namespace mneme::reference
