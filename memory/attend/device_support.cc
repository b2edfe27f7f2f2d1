// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/device_support.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

#include "attention/cuda/plan.h"
#include "memory/device/mirror.h"
#include "memory/store_context.h"

namespace mneme {
namespace {

bool IsAligned(const void* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

template <typename Tensor>
bool IsContiguous(const Tensor& tensor) {
  return (tensor.head_stride == tensor.dim || tensor.heads == 1) &&
         (tensor.row_stride == tensor.heads * tensor.dim || tensor.rows <= 1);
}

std::string Name(DType type) {
  return std::string(DTypeName(type));
}

// The kernels read queries row after row, two elements at a time.
UnsupportedReason CheckQueryLayout(Argument argument, const RowTensor& query) {
  if (!IsContiguous(query)) return {argument, "a contiguous tensor", "one with strides"};
  if (!IsAligned(query.data, 4)) return {argument, "an address aligned to 4 bytes", "another"};
  return {};
}

UnsupportedReason CheckQueryType(Argument argument, const RowTensor& query) {
  if (query.dtype == DType::kF16 || query.dtype == DType::kBF16) return {};
  return {argument, "f16 or bf16", Name(query.dtype), "dtype"};
}

// The kernels read 16 bytes of a local row at a time.
UnsupportedReason CheckLocalLayout(Argument argument, const RowTensor& rows, DType query_type) {
  if (rows.dtype != query_type) {
    return {argument, absl::StrCat("the query's, ", Name(query_type)), Name(rows.dtype), "dtype"};
  }
  if (!IsAligned(rows.data, 16)) return {argument, "an address aligned to 16 bytes", "another"};
  for (const int64_t stride : {rows.row_stride, rows.head_stride}) {
    if (stride % 8 != 0) return {argument, "multiples of 8 elements", absl::StrCat(stride), "strides"};
  }
  return {};
}

UnsupportedReason CheckSearch(const AttendRequest& request, int64_t top_k) {
  const RetrieveRequest& retrieve = request.retrieve;
  if (retrieve.policy != PositionPolicy::kAsStored) {
    return {Argument::kPositionPolicy, "keys as they are stored (0)", absl::StrCat(static_cast<int>(retrieve.policy))};
  }
  if (retrieve.normalise_query) return {Argument::kNormaliseQuery, "0", "1"};
  if (top_k > cuda::kMaxTopK) {
    return {Argument::kTopK, absl::StrCat("at most ", cuda::kMaxTopK, " rows a head"), absl::StrCat(top_k)};
  }
  return {};
}

UnsupportedReason CheckMemoryQuery(const AttendRequest& request, int64_t top_k) {
  const RowTensor& query = request.retrieve.memory_query;
  if (query.dtype != request.query.dtype) {
    return {Argument::kMemoryQuery, absl::StrCat("the query's, ", Name(request.query.dtype)), Name(query.dtype),
            "dtype"};
  }
  if (UnsupportedReason reason = CheckQueryLayout(Argument::kMemoryQuery, query); !reason.supported()) return reason;
  const int64_t candidates = query.rows * query.heads * top_k;
  if (candidates > kMostRetrievedRows) {
    return {Argument::kQuery, absl::StrCat("at most ", kMostRetrievedRows, " of queries, heads and rows multiplied"),
            absl::StrCat(candidates)};
  }
  return {};
}

UnsupportedReason CheckLocal(const AttendRequest& request) {
  const DType query_type = request.query.dtype;
  UnsupportedReason reason = CheckLocalLayout(Argument::kLocalKeys, request.local_keys, query_type);
  if (reason.supported()) reason = CheckLocalLayout(Argument::kLocalValues, request.local_values, query_type);
  if (!reason.supported()) return reason;
  if (request.mask.kind == LocalMask::Kind::kBits) {
    return {Argument::kLocalMask, "none, causal or a sliding window", "bits (3)"};
  }
  if (request.mask.kind == LocalMask::Kind::kNone) return {};
  for (const Sequence& sequence : request.retrieve.sequences) {
    const int64_t newest = sequence.local_end - sequence.local_begin - (sequence.query_end - sequence.query_begin);
    if (sequence.mask_offset == newest) continue;
    return {Argument::kMaskOffsets, absl::StrCat("queries that are the newest local rows, so ", newest),
            absl::StrCat(sequence.mask_offset)};
  }
  return {};
}

UnsupportedReason CheckAll(const AttendRequest& request) {
  const int64_t top_k = GreatestTopK(request);
  const bool local = CallHasLocalRows(request);
  const size_t batch = request.retrieve.sequences.size();
  if (UnsupportedReason reason = CheckQueryType(Argument::kQuery, request.query); !reason.supported()) return reason;
  if (request.query.rows == 0) return {Argument::kQuery, "a query or more", "none"};
  if (batch > kMostSequences) {
    return {Argument::kBatch, absl::StrCat("at most ", kMostSequences, " sequences"), absl::StrCat(batch)};
  }
  if (!local && top_k == 0) return {Argument::kLocalKeys, "local rows where no head has a memory", "none"};
  if (UnsupportedReason reason = CheckQueryLayout(Argument::kQuery, request.query); !reason.supported()) return reason;
  if (!IsContiguous(request.output)) return {Argument::kOutput, "a contiguous tensor", "one with strides"};
  if (top_k > 0) {
    UnsupportedReason reason = CheckSearch(request, top_k);
    if (reason.supported()) reason = CheckMemoryQuery(request, top_k);
    if (!reason.supported()) return reason;
  }
  if (request.fusion == Fusion::kGated && request.memory_mass != nullptr) {
    return {Argument::kMemoryMass, "NULL where fusion is gated", "a pointer"};
  }
  return local ? CheckLocal(request) : UnsupportedReason();
}

}  // namespace

UnsupportedReason CheckDeviceSupport(const AttendRequest& request, DevicePart part) {
  if (part == DevicePart::kAll) return CheckAll(request);
  UnsupportedReason reason = CheckSearch(request, GreatestTopK(request));
  return reason.supported() ? CheckQueryType(Argument::kMemoryQuery, request.retrieve.memory_query) : reason;
}

UnsupportedReason LaunchMemories::Add(const Memory& memory, size_t number) {
  const auto reason = [number](absl::StatusCode code, std::string expected, std::string got) {
    return UnsupportedReason{.argument = Argument::kMemories,
                             .expected = std::move(expected),
                             .got = std::move(got),
                             .element = static_cast<int64_t>(number),
                             .code = code};
  };
  Device* const device = memory.context().device().get();
  if (device == nullptr || (device_ != nullptr && device != device_)) {
    return reason(absl::StatusCode::kInvalidArgument, "one of the graph's store", "one of another");
  }
  const DType stored = memory.options().stored_dtype;
  if (memory.mirror() == nullptr || !MemoryMirror::Supports(layer_, stored)) {
    return reason(absl::StatusCode::kUnimplemented,
                  "one that can lie on the device: rows f16, bf16 or i8 of 64, 128 or 256 dims, without an index of a "
                  "kind of its own",
                  absl::StrCat("\"", memory.name(), "\", which cannot"));
  }
  const DType expected = stored_.value_or(stored == DType::kI8 ? stored : query_type_);
  if (stored != expected) {
    return reason(absl::StatusCode::kInvalidArgument,
                  absl::StrCat("rows of ", Name(expected), ", as the launch searches"), Name(stored));
  }
  device_ = device;
  stored_ = stored;
  return {};
}

bool CallHasLocalRows(const AttendRequest& request) {
  return request.fusion != Fusion::kMemoryOnly && request.local_keys.data != nullptr;
}

int64_t GreatestTopK(const AttendRequest& request) {
  int64_t top_k = 0;
  if (request.fusion == Fusion::kLocalOnly) return top_k;
  for (const HeadRule& head : request.retrieve.heads) top_k = std::max(top_k, head.top_k);
  return top_k;
}

}  // namespace mneme
