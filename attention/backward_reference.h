// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_ATTENTION_BACKWARD_REFERENCE_H_
#define MNEME_ATTENTION_BACKWARD_REFERENCE_H_

#include <vector>

#include "attention/reference.h"

// The definition of the backward pass in double precision. Slow; written to be read. docs/design/attention.md has the
// formulas.
namespace mneme::reference {

// How a loss changes with the inputs of one query of one head.
struct Gradients {
  std::vector<double> query;
  std::vector<double> memory_query;
  std::vector<std::vector<double>> local_keys, local_values;  // as Problem's; zero where hidden
  double memory_bias = 0;
  double gate = 0;
  double scale = 0;
};

// The gradients of a loss, of which output_gradient [value_dim] and log_sum_exp_gradient are the derivatives by the
// output and the log-sum-exp of Attend(problem). The retrieved set is constant, and so are its keys and values.
Gradients Backward(const Problem& problem, const std::vector<double>& output_gradient, double log_sum_exp_gradient);

// The gradient by a query x, where `gradient` is the one by x / sqrt(|x|² + 1e-6).
std::vector<double> NormaliseBackward(const std::vector<double>& x, const std::vector<double>& gradient);

}  // namespace mneme::reference

#endif  // MNEME_ATTENTION_BACKWARD_REFERENCE_H_
