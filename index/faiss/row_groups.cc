// SPDX-License-Identifier: Apache-2.0
#include "index/faiss/row_groups.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/checksum.h"

namespace mneme {
namespace {

struct HashedRow {
  uint32_t hash;
  int32_t row;
};

// Equal keys have equal hashes.
std::vector<HashedRow> HashRows(const float* keys, int64_t rows, int64_t dim) {
  std::vector<HashedRow> hashed(static_cast<size_t>(rows));
  std::vector<float> key(static_cast<size_t>(dim));
  for (int64_t r = 0; r < rows; ++r) {
    // -0 becomes 0.
    std::transform(keys + r * dim, keys + (r + 1) * dim, key.begin(), [](float x) { return x == 0 ? 0.0f : x; });
    hashed[static_cast<size_t>(r)] = {Checksum32(key.data(), key.size() * sizeof(float)), static_cast<int32_t>(r)};
  }
  return hashed;
}

}  // namespace

RowGroups::RowGroups(std::vector<int32_t> numbers, int64_t groups)
    : numbers_(std::move(numbers)), starts_(static_cast<size_t>(groups) + 1), rows_(numbers_.size()) {
  for (const int32_t number : numbers_) ++starts_[static_cast<size_t>(number) + 1];
  for (size_t g = 1; g < starts_.size(); ++g) starts_[g] += starts_[g - 1];
  std::vector<int32_t> next(starts_.begin(), starts_.end() - 1);
  for (size_t r = 0; r < numbers_.size(); ++r) {
    rows_[static_cast<size_t>(next[static_cast<size_t>(numbers_[r])]++)] = static_cast<int32_t>(r);
  }
}

RowGroups RowGroups::OfKeys(const float* keys, int64_t rows, int64_t dim) {
  std::vector<HashedRow> order = HashRows(keys, rows, dim);
  // Hashes may collide, even by an attack, so the keys themselves are compared.
  const auto key_of = [&](const HashedRow& row) {
    return absl::MakeConstSpan(keys + row.row * dim, static_cast<size_t>(dim));
  };
  std::sort(order.begin(), order.end(), [&](const HashedRow& a, const HashedRow& b) {
    if (a.hash != b.hash) return a.hash < b.hash;
    const absl::Span<const float> x = key_of(a), y = key_of(b);
    const auto [at_x, at_y] = std::mismatch(x.begin(), x.end(), y.begin());
    return at_x != x.end() ? *at_x < *at_y : a.row < b.row;
  });
  std::vector<int32_t> first_row(order.size());  // of the group of each row
  for (size_t i = 0; i < order.size(); ++i) {
    const bool joins = i > 0 && order[i].hash == order[i - 1].hash && key_of(order[i]) == key_of(order[i - 1]);
    first_row[static_cast<size_t>(order[i].row)] =
        joins ? first_row[static_cast<size_t>(order[i - 1].row)] : order[i].row;
  }
  std::vector<int32_t> numbers(order.size());
  int32_t groups = 0;
  for (size_t r = 0; r < numbers.size(); ++r) {
    const auto first = static_cast<size_t>(first_row[r]);
    numbers[r] = first == r ? groups++ : numbers[first];
  }
  return RowGroups(std::move(numbers), groups);
}

absl::StatusOr<RowGroups> RowGroups::FromNumbers(std::vector<int32_t> numbers, int64_t groups) {
  int64_t seen = 0;
  for (const int32_t number : numbers) {
    if (number < 0 || number > seen) return absl::DataLossError(absl::StrCat("group ", number, " comes before ", seen));
    if (number == seen) ++seen;
  }
  if (seen != groups) return absl::DataLossError(absl::StrCat("there are ", seen, " groups, not ", groups));
  return RowGroups(std::move(numbers), groups);
}

std::vector<float> RowGroups::FirstKeys(const float* keys, int64_t dim) const {
  std::vector<float> first(static_cast<size_t>(groups() * dim));
  for (int64_t g = 0; g < groups(); ++g) std::copy_n(keys + Rows(g).front() * dim, dim, first.data() + g * dim);
  return first;
}

}  // namespace mneme
