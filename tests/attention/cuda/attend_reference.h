// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_ATTENTION_CUDA_ATTEND_REFERENCE_H_
#define MNEME_TESTS_ATTENTION_CUDA_ATTEND_REFERENCE_H_

#include <string>
#include <vector>

#include "tests/attention/cuda/attend_case.h"

namespace mneme::cuda {

// Plain double-precision definition of one query head's answer, by the formulas of AttendProblem.
struct ReferenceRow {
  std::vector<double> logits;      // [end - begin] of the memory's rows; -infinity where one is hidden
  std::vector<double> magnitudes;  // the same: scale * sum |q_i k_i|, what rounding is measured by
  std::vector<int64_t> found;      // the top_k best, best first
  std::vector<double> output;      // [value_dim]
  double log_sum_exp = 0, memory_share = 0;
};

// Row `pair` of [tokens, q_heads].
ReferenceRow Reference(const AttendCase& c, int64_t pair);

// Makes output, log_sum_exp and memory_share of row.found and the local rows anew.
void AttendToFound(const AttendCase& c, int64_t pair, ReferenceRow& row);

// The greatest errors over all that was compared, each divided by its bound.
struct AttendErrors {
  double output = 0, log_sum_exp = 0, logit = 0;
};

// Compares an answer with the reference. Returns: "" if they agree, else the first difference. They agree if the rows
// found are k best ones (in an exact case the reference's rows; otherwise a row may replace another whose logit is
// equal up to rounding), and output, log-sum-exp and share are those of softmax over them. Compares up to `most_pairs`
// rows of [tokens, q_heads], evenly spread.
std::string Compare(const AttendCase& c, const AttendAnswer& answer, int64_t most_pairs, AttendErrors* errors);

}  // namespace mneme::cuda

#endif  // MNEME_TESTS_ATTENTION_CUDA_ATTEND_REFERENCE_H_
