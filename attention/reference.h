// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_REFERENCE_H_
#define MNEME_ATTENTION_REFERENCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "attention/fusion.h"
#include "base/model_card.h"

// Plain definitions in double precision, which every fast path is compared with. Slow; written to be read.
namespace mneme::reference {

struct State {
  std::vector<double> output;
  double log_sum_exp;
};

// Softmax of logits [n] over value rows [n][value_dim], of the rows for which visible(i) is true.
State Softmax(const std::vector<double>& logits, const std::vector<std::vector<double>>& values, int64_t value_dim,
              const std::function<bool(int64_t)>& visible);

State Merge(const State& a, const State& b);
std::vector<double> Gate(const State& memory, const State& local, double gate);

double Dot(const std::vector<double>& a, const std::vector<double>& b);
double SoftCap(double score, double soft_cap);
std::vector<double> Rotate(const Rotary& rotary, double position, std::vector<double> row);

// The derivative of SoftCap by the score.
double SoftCapSlope(double score, double soft_cap);
// The transpose of Rotate, which is the way of a gradient through it.
std::vector<double> RotateTransposed(const Rotary& rotary, double position, std::vector<double> row);

// The numbers of the k greatest logits, greatest first, ties by the lower number.
std::vector<int64_t> TopK(const std::vector<double>& logits, int64_t k);

// One query of one head: ranks the memory rows, attends to the best and to the local rows, fuses.
enum class PositionPolicy { kNone, kFixedDistance, kWindowStart, kClamped };  // kNone also: as stored
struct Problem {
  std::vector<double> query;         // as local attention uses it (rotated)
  std::vector<double> memory_query;  // as memory uses it (unrotated, or rotated under as-stored)
  std::vector<std::vector<double>> memory_keys, memory_values;
  std::vector<int64_t> memory_token;     // token index of each memory row
  std::vector<int64_t> memory_position;  // rotary position of each memory row
  std::vector<bool> memory_pinned;
  std::vector<std::vector<double>> local_keys, local_values;
  std::vector<bool> local_visible;
  int64_t value_dim = 0;
  Rotary rotary;
  PositionPolicy policy = PositionPolicy::kNone;
  double distance = 0;         // kFixedDistance: tokens; kWindowStart: the query's local position; kClamped: W
  int64_t query_position = 0;  // true position: ages and clamped distances are counted from it
  int64_t top_k = 0;
  double scale = 1, soft_cap = 0, memory_bias = 0, decay = 0, decay_beyond = 1, gate = 0;
  Fusion fusion = Fusion::kJoint;
};
struct Result {
  State state;                  // of what `fusion` asks for; kGated: its log_sum_exp is that of all rows
  std::vector<int64_t> tokens;  // retrieved, best first
  std::vector<double> logits;
  double memory_mass = 0;  // the memory rows' share of the attention mass (kGated: sigmoid(gate))
};
// The logit of a memory row is cap(scale q·k) + (pinned ? 0 : bias - decay * max(0, log2(age / decay_beyond))), where
// age is query_position - token.
Result Attend(const Problem& problem);

// What Attend does with each row. Local rows have scale * q·k as their score, retrieved rows too, with a query that the
// policy has rotated.
struct RowScores {
  std::vector<double> memory_scores, memory_logits;  // [memory rows]
  std::vector<double> local_scores, local_logits;    // [local rows]
};
RowScores Score(const Problem& problem);

// By which distance the policy rotates the query that meets a memory row; none: it does not rotate.
std::optional<double> DistanceTo(const Problem& problem, size_t memory_row);

}  // namespace mneme::reference

#endif  // MNEME_ATTENTION_REFERENCE_H_
