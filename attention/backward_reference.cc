// SPDX-License-Identifier: Apache-2.0
#include "attention/backward_reference.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>

namespace mneme::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Rows that share one softmax.
struct Part {
  std::vector<size_t> rows;  // numbers of the problem's memory or local rows
  std::vector<double> logits;
  std::vector<std::vector<double>> values;
  State state;
};

Part MakePart(const std::vector<size_t>& rows, const std::vector<double>& logits,
              const std::vector<std::vector<double>>& values, int64_t value_dim) {
  Part part;
  part.rows = rows;
  for (const size_t row : rows) {
    part.logits.push_back(logits[row]);
    part.values.push_back(values[row]);
  }
  part.state = Softmax(part.logits, part.values, value_dim, [](int64_t) { return true; });
  return part;
}

// The gradients of a part's rows. With p_j the row's weight in its own softmax, the output changes with its logit by
// a p_j (v_j - center) and with its value by a p_j, and the log-sum-exp with its logit by b p_j.
struct Share {
  double a = 0, b = 0;
  std::vector<double> center;
};

// Adds v times x to `sum`.
void Add(double v, const std::vector<double>& x, std::vector<double>& sum) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += v * x[i];
}

double WeightOf(const Part& part, size_t i) {
  return std::exp(part.logits[i] - part.state.log_sum_exp);
}

// The share of the mass that a part has of both.
double MassOf(const State& part, const State& joint) {
  return part.log_sum_exp == -kInfinity ? 0 : std::exp(part.log_sum_exp - joint.log_sum_exp);
}

void MakeShares(const Problem& problem, const State& memory, const State& local, Share& of_memory, Share& of_local) {
  const State joint = Merge(memory, local);
  const double sigmoid = 1 / (1 + std::exp(-problem.gate));
  switch (problem.fusion) {
    case Fusion::kJoint:
      of_memory = {MassOf(memory, joint), MassOf(memory, joint), joint.output};
      of_local = {MassOf(local, joint), MassOf(local, joint), joint.output};
      break;
    case Fusion::kGated:
      of_memory = {sigmoid, MassOf(memory, joint), memory.output};
      of_local = {1 - sigmoid, MassOf(local, joint), local.output};
      break;
    case Fusion::kMemoryOnly:
      of_memory = {1, 1, memory.output};
      of_local = {0, 0, local.output};
      break;
    case Fusion::kLocalOnly:
      of_memory = {0, 0, memory.output};
      of_local = {1, 1, local.output};
      break;
  }
}

}  // namespace

Gradients Backward(const Problem& problem, const std::vector<double>& output_gradient, double log_sum_exp_gradient) {
  const RowScores scores = Score(problem);
  std::vector<size_t> retrieved, visible;
  for (const int64_t row : TopK(scores.memory_logits, problem.top_k)) retrieved.push_back(static_cast<size_t>(row));
  for (size_t row = 0; row < problem.local_keys.size(); ++row) {
    if (problem.local_visible[row]) visible.push_back(row);
  }
  const Part memory = MakePart(retrieved, scores.memory_logits, problem.memory_values, problem.value_dim);
  const Part local = MakePart(visible, scores.local_logits, problem.local_values, problem.value_dim);
  Share of_memory, of_local;
  MakeShares(problem, memory.state, local.state, of_memory, of_local);

  Gradients gradients;
  gradients.query.resize(problem.query.size());
  gradients.memory_query.resize(problem.memory_query.size());
  gradients.local_keys.assign(problem.local_keys.size(), std::vector<double>(problem.query.size()));
  gradients.local_values.assign(problem.local_values.size(),
                                std::vector<double>(static_cast<size_t>(problem.value_dim)));
  const auto of_logit = [&](const Share& share, double weight, const std::vector<double>& value) {
    std::vector<double> moved = value;
    Add(-1, share.center, moved);
    return weight * (share.a * Dot(output_gradient, moved) + share.b * log_sum_exp_gradient);
  };
  for (size_t i = 0; i < local.rows.size(); ++i) {
    const size_t row = local.rows[i];
    const double weight = WeightOf(local, i);
    Add(of_local.a * weight, output_gradient, gradients.local_values[row]);
    const double by_score =
        of_logit(of_local, weight, local.values[i]) * SoftCapSlope(scores.local_scores[row], problem.soft_cap);
    Add(by_score * problem.scale, problem.local_keys[row], gradients.query);
    Add(by_score * problem.scale, problem.query, gradients.local_keys[row]);
    gradients.scale += by_score * scores.local_scores[row] / problem.scale;
  }
  for (size_t i = 0; i < memory.rows.size(); ++i) {
    const size_t row = memory.rows[i];
    const double by_logit = of_logit(of_memory, WeightOf(memory, i), memory.values[i]);
    const double by_score = by_logit * SoftCapSlope(scores.memory_scores[row], problem.soft_cap);
    if (!problem.memory_pinned[row]) gradients.memory_bias += by_logit;
    gradients.scale += by_score * scores.memory_scores[row] / problem.scale;
    std::vector<double> by_query = problem.memory_keys[row];
    if (const std::optional<double> distance = DistanceTo(problem, row); distance.has_value()) {
      by_query = RotateTransposed(problem.rotary, *distance, by_query);
      const bool rotates = problem.rotary.layout != RotaryLayout::kNone;
      for (size_t d = 0; rotates && d < 2 * problem.rotary.inverse_frequencies.size(); ++d) {
        by_query[d] *= static_cast<double>(problem.rotary.magnitude);  // the key's; Rotate applied the query's
      }
    }
    Add(by_score * problem.scale, by_query, gradients.memory_query);
  }
  if (problem.fusion == Fusion::kGated) {
    std::vector<double> difference = memory.state.output;
    Add(-1, local.state.output, difference);
    const double sigmoid = 1 / (1 + std::exp(-problem.gate));
    gradients.gate = sigmoid * (1 / (1 + std::exp(problem.gate))) * Dot(output_gradient, difference);
  }
  return gradients;
}

std::vector<double> NormaliseBackward(const std::vector<double>& x, const std::vector<double>& gradient) {
  const double norm = std::sqrt(Dot(x, x) + 1e-6);
  std::vector<double> result = gradient;
  Add(-Dot(x, gradient) / (norm * norm), x, result);
  for (double& element : result) element /= norm;
  return result;
}

}  // namespace mneme::reference
