// SPDX-License-Identifier: Apache-2.0
#include "index/scan/coded_queries.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "index/scan/query_codes.h"
#include "index/scan/rotation.h"

namespace mneme {
namespace {

// More than what products may lose below f32's normal range.
constexpr float kUnderflow = 1e-36f;

}  // namespace

void CodedQueries::Encode(const codes::Kernels& kernels, const float* queries, int64_t count, int64_t dim,
                          int64_t coded_dim) {
  rotated_.resize(static_cast<size_t>(dim));
  query_row_.resize(static_cast<size_t>(coded_dim));
  values_.resize(static_cast<size_t>(count * coded_dim * kernels.value_copies));
  queries_.resize(static_cast<size_t>(count));
  mean_dots_.Begin(kernels, count, dim);
  // An upper bound of what f32 rounds away, relative to |query| · |key|, both in the bound and in the exact dot
  // product: a unit in the last place for each term, and some for the rest.
  const auto rounding = static_cast<float>(dim + 64) * 0x1p-23f;
  for (int64_t i = 0; i < count; ++i) {
    const float* vector = queries + i * dim;
    std::copy_n(vector, dim, rotated_.data());
    Rotate(rotated_.data(), dim);
    const codes::QueryCode code = codes::EncodeQuery(rotated_.data(), dim, kernels, query_row_.data());
    codes::PackQueryValues(kernels, query_row_.data(), i, count, coded_dim, values_.data());
    double squares = 0;
    for (int64_t d = 0; d < dim; ++d) squares += static_cast<double>(vector[d]) * vector[d];
    const float norm = static_cast<float>(std::sqrt(squares) * 1.0001) + kUnderflow;
    mean_dots_.SetQuery(i, vector, norm * rounding);
    codes::Query& query = queries_[static_cast<size_t>(i)];
    query.start = -codes::kZeroCode * code.sum;
    query.step = code.step;
    query.inverse_step = code.step > 0 ? 1 / code.step : std::numeric_limits<float>::infinity();
    query.error_weight = norm * (1 + rounding);
    query.norm_weight = static_cast<float>(std::sqrt(code.error_squared) * 1.0001) + norm * rounding;
  }
}

}  // namespace mneme
