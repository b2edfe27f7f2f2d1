// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_INDEX_SCAN_CODED_QUERIES_H_
#define MNEME_INDEX_SCAN_CODED_QUERIES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "index/scan/code_scan_kernel.h"
#include "index/scan/mean_dots.h"

namespace mneme {

// The queries of one scan in the form that the code-scan kernels take. Keeps its buffers between scans. Not
// thread-safe.
class CodedQueries {
 public:
  // Rotates and codes `queries`, f32 [count, dim]. coded_dim: KeyCodes::coded_dim. min_dot is left for the caller to
  // set.
  void Encode(const codes::Kernels& kernels, const float* queries, int64_t count, int64_t dim, int64_t coded_dim);

  // The packed values of all queries (PackQueryValues).
  const int8_t* values() const { return values_.data(); }
  codes::Query* data() { return queries_.data(); }
  codes::Query& operator[](int64_t query) { return queries_[static_cast<size_t>(query)]; }
  // Products with the means of chunks. Encode has given it all queries.
  MeanDots& mean_dots() { return mean_dots_; }

 private:
  std::vector<float> rotated_;     // [dim]
  std::vector<int8_t> query_row_;  // [coded_dim]
  std::vector<int8_t> values_;     // [count * coded_dim * value_copies]
  std::vector<codes::Query> queries_;
  MeanDots mean_dots_;
};

}  // namespace mneme

#endif  // MNEME_INDEX_SCAN_CODED_QUERIES_H_
