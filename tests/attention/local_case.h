// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_ATTENTION_LOCAL_CASE_H_
#define MNEME_TESTS_ATTENTION_LOCAL_CASE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "attention/local.h"
#include "tests/attention/random_tensors.h"

namespace mneme {

struct LocalSizes {
  int64_t rows, key_dim, value_dim, group, query_count;
};

// A drawn problem of local attention and everything that it borrows, but for the scales, which a test chooses.
struct LocalCase {
  // value_size: the standard deviation of values.
  LocalCase(TestRandom& random, DType dtype, const LocalSizes& sizes, float value_size = 1)
      : row_begin(random.Between(0, 20)),
        rows(sizes.rows),
        head(random.Between(0, 2)),
        key_dim(sizes.key_dim),
        value_dim(sizes.value_dim),
        group(sizes.group),
        query_count(sizes.query_count),
        first_query(random.Chance(0.7) ? 0 : random.Between(0, 100)),
        keys(random, dtype, row_begin + rows + random.Between(0, 5), 3, key_dim, [&] { return random.Normal(); }),
        values(random, dtype, row_begin + rows + random.Between(0, 5), 3, value_dim,
               [&] { return random.Normal(value_size); }) {
    queries.resize(static_cast<size_t>(query_count * group * key_dim));
    for (float& x : queries) x = random.Normal();
    soft_cap = random.Chance(0.3) ? random.OneOf<float>({0.5f, 20.0f, 50.0f}) : 0.0f;
    mask.kind = static_cast<LocalMask::Kind>(random.Between(0, 3));
    mask.offset = random.Chance(0.5) ? rows - query_count - first_query : random.Between(-rows - 9, rows + 9);
    mask.window = random.OneOf<int64_t>({0, 1, 5, 64, 100, 1000});
    mask.bits_stride = (rows + 7) / 8 + random.Between(0, 3);
    // Exactly as many bytes as a reader may touch.
    bits.resize(static_cast<size_t>(mask.bits_stride * (first_query + query_count - 1) + (rows + 7) / 8));
    const double density = random.OneOf<double>({0.0, 0.02, 0.5, 0.97, 1.0});
    for (uint8_t& byte : bits) {
      for (int bit = 0; bit < 8; ++bit) byte = static_cast<uint8_t>(byte | (random.Chance(density) ? 1 << bit : 0));
    }
    mask.bits = bits.data();
  }
  LocalCase(const LocalCase&) = delete;
  LocalCase& operator=(const LocalCase&) = delete;

  LocalProblem Problem() const {
    LocalProblem problem;
    problem.queries = queries.data();
    problem.query_count = query_count;
    problem.first_query = first_query;
    problem.group = group;
    problem.keys = keys.view();
    problem.values = values.view();
    problem.head = head;
    problem.row_begin = row_begin;
    problem.row_count = rows;
    problem.mask = mask;
    problem.scales = scales.data();
    problem.soft_cap = soft_cap;
    return problem;
  }

  std::string Describe() const {
    return "rows " + std::to_string(rows) + " key_dim " + std::to_string(key_dim) + " value_dim " +
           std::to_string(value_dim) + " group " + std::to_string(group) + " queries " + std::to_string(query_count) +
           " first_query " + std::to_string(first_query) + " mask " + std::to_string(static_cast<int>(mask.kind)) +
           " offset " + std::to_string(mask.offset) + " window " + std::to_string(mask.window) + " soft_cap " +
           std::to_string(soft_cap);
  }

  int64_t row_begin, rows, head, key_dim, value_dim, group, query_count, first_query;
  OwnedTensor keys, values;
  std::vector<float> queries, scales;
  float soft_cap = 0;
  LocalMask mask;
  std::vector<uint8_t> bits;
};

}  // namespace mneme

#endif  // MNEME_TESTS_ATTENTION_LOCAL_CASE_H_
