// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "base/status.h"
#include "index/faiss/faiss_index.h"

namespace mneme {
namespace {

using Family = FaissShape::Family;

absl::string_view CodeName(FaissCode code) {
  switch (code) {
    case FaissCode::kFlat: return "Flat";
    case FaissCode::kPq: return "PQ";
    case FaissCode::kSq8: return "SQ8";
    case FaissCode::kSq6: return "SQ6";
    case FaissCode::kSq4: return "SQ4";
    case FaissCode::kSqF16: return "SQfp16";
  }
  return "unknown";
}

// Returns: 128 for "IVF128" with prefix "IVF"; -1 if the text is not the prefix followed by a number from 1 to 2^24.
int32_t NumberAfter(absl::string_view text, absl::string_view prefix) {
  if (!absl::StartsWith(text, prefix)) return -1;
  text.remove_prefix(prefix.size());
  int32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= 1 && value <= (1 << 24) ? value : -1;
}

bool ParseCode(absl::string_view text, FaissShape& shape) {
  for (const FaissCode code :
       {FaissCode::kFlat, FaissCode::kSq8, FaissCode::kSq6, FaissCode::kSq4, FaissCode::kSqF16}) {
    if (text == CodeName(code)) {
      shape.code = code;
      return true;
    }
  }
  const int32_t bytes = NumberAfter(text, "PQ");
  if (bytes < 0 || shape.family != Family::kIvf) return false;
  shape.code = FaissCode::kPq;
  shape.pq_bytes = bytes;
  return true;
}

// The bytes of a PQ code for which FAISS has GPU kernels.
constexpr int32_t kGpuPqBytes[] = {1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96};

bool HasPqBytes(IndexKind kind, int64_t bytes) {
  return !IsGpuKind(kind) || std::find(std::begin(kGpuPqBytes), std::end(kGpuPqBytes), bytes) != std::end(kGpuPqBytes);
}

// One byte for two dimensions, or the next smaller number that divides the dimensions evenly and the kind allows.
int32_t DefaultPqBytes(IndexKind kind, int64_t dim) {
  for (int64_t bytes = std::max<int64_t>(dim / 2, 1); bytes > 1; --bytes) {
    if (dim % bytes == 0 && HasPqBytes(kind, bytes)) return static_cast<int32_t>(bytes);
  }
  return 1;
}

// 2 sqrt(rows) lists, but not so many that they hold fewer than 32 rows on average, too few to train on.
int32_t DefaultLists(int64_t rows) {
  const auto lists = static_cast<int64_t>(std::lround(2 * std::sqrt(static_cast<double>(rows))));
  return static_cast<int32_t>(std::clamp<int64_t>(lists, 1, std::max<int64_t>(rows / 32, 1)));
}

}  // namespace

std::string FaissShape::Text() const {
  std::string text;
  switch (family) {
    case Family::kFlat: return std::string(CodeName(code));
    case Family::kIvf: text = absl::StrCat("IVF", lists, ","); break;
    case Family::kHnsw: text = absl::StrCat("HNSW", degree, ":", ef_construction, ","); break;
  }
  absl::StrAppend(&text, CodeName(code));
  if (code == FaissCode::kPq) absl::StrAppend(&text, pq_bytes);
  return text;
}

absl::StatusOr<FaissShape> ParseFactory(absl::string_view factory) {
  const std::vector<absl::string_view> parts = absl::StrSplit(factory, ',');
  FaissShape shape;
  bool good = false;
  if (parts.size() == 1 && ParseCode(parts[0], shape)) {
    good = true;
  } else if (const int32_t lists = NumberAfter(parts[0], "IVF"); lists > 0 && parts.size() == 2) {
    shape.family = Family::kIvf;
    shape.lists = lists;
    good = ParseCode(parts[1], shape);
  } else if (const int32_t degree = NumberAfter(parts[0], "HNSW"); degree > 1 && parts.size() <= 2) {
    shape.family = Family::kHnsw;
    shape.degree = degree;
    good = parts.size() == 1 || ParseCode(parts[1], shape);
  }
  if (!good) {
    return absl::InvalidArgumentError(absl::StrCat("FAISS factory string \"", factory,
                                                   "\" is not allowed; expected Flat, SQ<8|6|4|fp16>, "
                                                   "IVF<lists>,<Flat|PQ<bytes>|SQ…> or HNSW<degree>[,Flat|SQ…]"));
  }
  return shape;
}

absl::StatusOr<FaissShape> ResolveShape(const IndexSpec& spec, int64_t rows, int64_t dim) {
  FaissShape shape;
  switch (spec.kind) {
    case IndexKind::kFlat:
    case IndexKind::kGpuFlat: break;
    case IndexKind::kIvfPq:
    case IndexKind::kGpuIvfPq:
      shape.code = FaissCode::kPq;
      shape.pq_bytes = spec.pq_bytes > 0 ? spec.pq_bytes : DefaultPqBytes(spec.kind, dim);
      [[fallthrough]];
    case IndexKind::kIvf:
    case IndexKind::kGpuIvf:
      shape.family = Family::kIvf;
      shape.lists = spec.lists > 0 ? spec.lists : DefaultLists(rows);
      break;
    case IndexKind::kHnsw:
      shape.family = Family::kHnsw;
      shape.degree = spec.graph_degree > 0 ? spec.graph_degree : 32;
      break;
    case IndexKind::kFactory: {
      MNEME_ASSIGN_OR_RETURN(shape, ParseFactory(spec.factory));
      break;
    }
    default: return absl::InvalidArgumentError(absl::StrCat(FormatIndexSpec(spec), ": not an index of FAISS"));
  }
  if (shape.family == Family::kHnsw) {
    shape.ef_construction = spec.ef_construction > 0 ? spec.ef_construction : 80;
    if (shape.degree < 2 || shape.degree > 512) {
      return absl::InvalidArgumentError(absl::StrCat(shape.Text(), ": degree must be from 2 to 512"));
    }
  }
  if (shape.family == Family::kIvf && shape.lists > rows) {
    return absl::InvalidArgumentError(
        absl::StrCat(shape.Text(), ": ", shape.lists, " lists need as many rows, there are ", rows));
  }
  if (shape.code == FaissCode::kPq) {
    if (!HasPqBytes(spec.kind, shape.pq_bytes)) {
      return absl::InvalidArgumentError(absl::StrCat(FormatIndexSpec(spec), ": a GPU takes ",
                                                     absl::StrJoin(kGpuPqBytes, ", "), " code bytes a row, not ",
                                                     shape.pq_bytes));
    }
    if (rows < 256) {
      return absl::InvalidArgumentError(absl::StrCat(shape.Text(), ": needs 256 rows to train on, there are ", rows));
    }
    if (dim % shape.pq_bytes != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(shape.Text(), ": ", shape.pq_bytes, " code bytes do not divide ", dim, " dims evenly"));
    }
  }
  return shape;
}

}  // namespace mneme
