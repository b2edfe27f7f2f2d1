// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/device/mirror.h"
#include "memory/memory.h"

namespace mneme {
namespace {

// As in Memorizing Transformers: x / sqrt(|x|^2 + 1e-6).
void NormaliseRow(float* row, int64_t dim) {
  double squares = 1e-6;
  for (int64_t i = 0; i < dim; ++i) squares += static_cast<double>(row[i]) * row[i];
  const auto factor = static_cast<float>(1.0 / std::sqrt(squares));
  for (int64_t i = 0; i < dim; ++i) row[i] *= factor;
}

// Encodes rows [first, first + n) of one head to `out`, one after another.
// Returns: false if a number is not finite or cannot be stored; then `out` is undefined.
bool EncodeRows(const RowTensor& tensor, int64_t head, int64_t first, int64_t n, DType stored, bool normalise,
                std::vector<float>& scratch, char* out) {
  if (stored != DType::kI8 && !normalise) {
    const int64_t stride = tensor.row_stride * static_cast<int64_t>(DTypeSize(tensor.dtype));
    return EncodeFinite(tensor.dtype, tensor.Row(first, head), stride, n, tensor.dim, stored, out);
  }
  const auto dim = static_cast<size_t>(tensor.dim);
  scratch.resize(dim);
  for (int64_t row = first; row < first + n; ++row, out += RowBytes(stored, tensor.dim)) {
    ConvertToF32(tensor.dtype, tensor.Row(row, head), scratch.data(), dim);
    if (!AllFinite(DType::kF32, scratch.data(), dim)) return false;
    if (normalise) NormaliseRow(scratch.data(), tensor.dim);
    EncodeRow(scratch.data(), stored, out, tensor.dim);
    if (stored != DType::kI8 && !AllFinite(stored, out, dim)) return false;
  }
  return true;
}

absl::Status CheckShape(absl::string_view name, const RowTensor& tensor, int64_t rows, int64_t heads, int64_t dim) {
  if (tensor.rows == rows && tensor.heads == heads && tensor.dim == dim) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": expected shape [", rows, ", ", heads, ", ", dim, "], got [",
                                                 tensor.rows, ", ", tensor.heads, ", ", tensor.dim, "]"));
}

// Returns: the error of rows [first, first + n) of one head, one of which EncodeRows refused. Infinite numbers are
// refused since one of them would make every softmax NaN.
absl::Status RefusedRowError(absl::string_view name, const RowTensor& tensor, int64_t head, int64_t first, int64_t n,
                             DType stored) {
  for (int64_t row = first; row < first + n; ++row) {
    if (!AllFinite(tensor.dtype, tensor.Row(row, head), static_cast<size_t>(tensor.dim))) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": expected finite numbers, got NaN or infinity in row ", row, " of head ", head));
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": expected numbers within the range of ", DTypeName(stored), ", which the memory stores (",
                   stored == DType::kF16 ? "65504" : "3.39e38", "), got a greater one in head ", head));
}

}  // namespace

absl::Status Memory::Append(int32_t layer, const RowTensor& keys, const RowTensor& values, const int64_t* positions,
                            const int32_t* token_ids) {
  const int found = card_.FindLayer(layer);
  if (found < 0) {
    return absl::InvalidArgumentError(absl::StrCat("layer: expected one of the card's, got ", layer));
  }
  const auto place = static_cast<size_t>(found);
  const LayerCard& shape = card_.layers[place];
  MNEME_RETURN_IF_ERROR(CheckShape("keys", keys, keys.rows, shape.kv_heads, shape.key_dim));
  MNEME_RETURN_IF_ERROR(CheckShape("values", values, keys.rows, shape.kv_heads, shape.value_dim));
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MNEME_RETURN_IF_ERROR(CheckWritable());
  if (keys.rows == 0) return absl::OkStatus();

  const DType stored = options_.stored_dtype;
  const std::shared_ptr<const MemoryState> now = state();
  const int64_t row = now->tail->LayerRows(place);
  std::vector<float>& scratch = row_buffer_;
  MNEME_RETURN_IF_ERROR(now->tail->FillRows(
      place, keys.rows, [&](RowKind kind, int32_t head, int64_t first, int64_t n, char* out) -> absl::Status {
        const bool of_keys = kind == RowKind::kKeys;
        const RowTensor& tensor = of_keys ? keys : values;
        const bool normalise = of_keys && options_.normalise_keys;
        if (EncodeRows(tensor, head, first, n, stored, normalise, scratch, out)) return absl::OkStatus();
        return RefusedRowError(of_keys ? "keys" : "values", tensor, head, first, n, stored);
      }));
  bool unusual;
  MNEME_RETURN_IF_ERROR(PrepareColumns(*now, row, keys.rows, positions, token_ids, &unusual));
  ShowRows(*now, place, keys.rows, unusual);
  if (mirror_ != nullptr) mirror_->CopyNewRows(TakeSnapshot(), place);
  return absl::OkStatus();
}

absl::Status Memory::PrepareColumns(const MemoryState& state, int64_t row, int64_t n, const int64_t* positions,
                                    const int32_t* token_ids, bool* unusual) {
  Segment& tail = *state.tail;
  const int64_t known = std::clamp(tail.ColumnRows() - row, int64_t{0}, n);
  if (known > 0 && positions != nullptr) {
    MNEME_ASSIGN_OR_RETURN(const auto columns, tail.Columns(row + known));
    for (int64_t i = 0; i < known; ++i) {
      if (positions[i] != columns->Position(row + i)) {
        return absl::InvalidArgumentError(absl::StrCat("positions[", i, "]: expected ", columns->Position(row + i),
                                                       ", which another layer gave for the same token, got ",
                                                       positions[i]));
      }
    }
  }
  new_positions_.clear();
  new_ids_.clear();
  *unusual = false;
  for (int64_t i = known; i < n; ++i) {
    const int64_t token = state.tail_first + row + i;
    new_positions_.push_back(positions != nullptr ? positions[i] : token);
    new_ids_.push_back(token_ids != nullptr ? token_ids[i] : -1);
    *unusual |= new_positions_.back() != token;
  }
  return known < n ? tail.ReserveColumns(n - known) : absl::OkStatus();
}

void Memory::ShowRows(const MemoryState& now, size_t layer, int64_t n, bool unusual) {
  const auto show = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!new_positions_.empty()) {
      now.tail->AppendColumns(new_positions_.data(), new_ids_.data(), static_cast<int64_t>(new_positions_.size()));
    }
    now.tail->PublishRows(layer, n);
  };
  const bool bounded = options_.max_tokens > 0;
  const auto exceeds_bound = [&](int64_t end) { return now.HeldBelow(end) > options_.max_tokens; };
  // Without a bound, one token of many layers does not pay for WholeEnd, which reads the rows of every layer.
  const bool may_evict = bounded && exceeds_bound(now.WholeEnd() + n);
  if ((!unusual || now.has_positions) && !may_evict) return show();
  MutexLock lock(&state_mutex_);
  auto next = std::make_shared<MemoryState>(*state_);
  show();
  next->has_positions |= unusual;
  const int64_t end = next->WholeEnd();
  if (bounded && exceeds_bound(end))
    next->first_kept = end - (options_.max_tokens - std::min(options_.pinned_tokens, end));
  state_ = std::move(next);
}

}  // namespace mneme
