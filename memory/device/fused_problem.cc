// SPDX-License-Identifier: Apache-2.0
#include "memory/device/fused_problem.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace mneme {
namespace {

bool Aligned(const void* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

template <typename Tensor>
bool Contiguous(const Tensor& tensor) {
  return (tensor.head_stride == tensor.dim || tensor.heads == 1) &&
         (tensor.row_stride == tensor.heads * tensor.dim || tensor.rows <= 1);
}

std::string Expected(absl::string_view name, absl::string_view expected, absl::string_view got) {
  return absl::StrCat(name, ": expected ", expected, ", got ", got);
}

// Queries are read row after row, in pairs of elements.
std::string UnknownQuery(absl::string_view name, const RowTensor& query) {
  if (!Contiguous(query)) return Expected(name, "a contiguous tensor", "one with strides");
  if (!Aligned(query.data, 4)) return Expected(name, "an address aligned to 4 bytes", "another");
  return "";
}

// Local rows are read 16 bytes at a time.
std::string UnknownLocalRows(absl::string_view name, const RowTensor& rows, DType type) {
  if (rows.dtype != type) {
    return Expected(absl::StrCat(name, ".dtype"), absl::StrCat("the query's, ", DTypeName(type)),
                    DTypeName(rows.dtype));
  }
  if (!Aligned(rows.data, 16)) return Expected(name, "an address aligned to 16 bytes", "another");
  for (const int64_t stride : {rows.row_stride, rows.head_stride}) {
    if (stride % 8 != 0) {
      return Expected(absl::StrCat(name, ".strides"), "multiples of 8 elements", absl::StrCat(stride));
    }
  }
  return "";
}

std::string UnknownSearch(const AttendRequest& request, int64_t top_k) {
  const RetrieveRequest& retrieve = request.retrieve;
  const RowTensor& query = retrieve.memory_query;
  if (retrieve.policy != PositionPolicy::kAsStored) {
    return Expected("args.position_policy", "MNEME_POSITION_AS_STORED (0)",
                    absl::StrCat(static_cast<int>(retrieve.policy)));
  }
  if (retrieve.normalise_query) return Expected("args.normalise_query", "0", "1");
  if (query.dtype != request.query.dtype) {
    return Expected("args.memory_query.dtype", absl::StrCat("the query's, ", DTypeName(request.query.dtype)),
                    DTypeName(query.dtype));
  }
  if (std::string unknown = UnknownQuery("args.memory_query", query); !unknown.empty()) return unknown;
  if (top_k > cuda::kMaxTopK) {
    return Expected("args.top_k", absl::StrCat("at most ", cuda::kMaxTopK, " rows a head"), absl::StrCat(top_k));
  }
  if (query.rows * query.heads * top_k > kMostCandidates) {
    return Expected("args.query", absl::StrCat("at most ", kMostCandidates, " of queries, heads and rows multiplied"),
                    absl::StrCat(query.rows * query.heads * top_k));
  }
  return "";
}

}  // namespace

bool HasLocalRows(const AttendRequest& request) {
  return request.fusion != Fusion::kMemoryOnly && request.local_keys.data != nullptr;
}

int64_t GreatestTopK(const AttendRequest& request) {
  int64_t top_k = 0;
  if (request.fusion == Fusion::kLocalOnly) return top_k;
  for (const HeadRule& head : request.retrieve.heads) top_k = std::max(top_k, head.top_k);
  return top_k;
}

std::string UnknownToKernels(const AttendRequest& request) {
  const int64_t top_k = GreatestTopK(request);
  const bool local = HasLocalRows(request);
  const RowTensor& query = request.query;
  if (query.dtype != DType::kF16 && query.dtype != DType::kBF16) {
    return Expected("args.query.dtype", "f16 or bf16", DTypeName(query.dtype));
  }
  if (query.rows == 0) return Expected("args.query", "a query or more", "none");
  if (request.retrieve.sequences.size() > 65535) {
    return Expected("batch", "at most 65535 sequences", absl::StrCat(request.retrieve.sequences.size()));
  }
  if (!local && top_k == 0) return Expected("args.local_keys", "local rows where no head has a memory", "none");
  if (std::string unknown = UnknownQuery("args.query", query); !unknown.empty()) return unknown;
  if (!Contiguous(request.output)) return Expected("args.output", "a contiguous tensor", "one with strides");
  if (top_k > 0) {
    if (std::string unknown = UnknownSearch(request, top_k); !unknown.empty()) return unknown;
  }
  if (request.fusion == Fusion::kGated && request.memory_mass != nullptr) {
    return Expected("args.memory_mass", "NULL where fusion is gated", "a pointer");
  }
  if (!local) return "";
  std::string unknown = UnknownLocalRows("args.local_keys", request.local_keys, query.dtype);
  if (unknown.empty()) unknown = UnknownLocalRows("args.local_values", request.local_values, query.dtype);
  if (!unknown.empty()) return unknown;
  if (request.mask.kind == LocalMask::Kind::kBits) {
    return Expected("args.local_mask", "none, causal or a sliding window", "MNEME_MASK_BITS (3)");
  }
  if (request.mask.kind == LocalMask::Kind::kNone) return "";
  for (const Sequence& sequence : request.retrieve.sequences) {
    const int64_t newest = sequence.local_end - sequence.local_begin - (sequence.query_end - sequence.query_begin);
    if (sequence.mask_offset != newest) {
      return Expected("args.mask_offsets", absl::StrCat("queries that are the newest local rows, so ", newest),
                      absl::StrCat(sequence.mask_offset));
    }
  }
  return "";
}

cuda::AttendProblem FusedProblemOf(const AttendRequest& request, DType stored) {
  const RetrieveRequest& retrieve = request.retrieve;
  const int64_t top_k = GreatestTopK(request);
  cuda::AttendProblem p =
      ProblemOf(retrieve, request.query.rows, retrieve.sequences.size(), top_k, request.query.dtype, stored);
  p.output_type = static_cast<cuda::ElementType>(request.output.dtype);
  p.query = request.query.data;
  if (top_k > 0 && retrieve.memory_query.data != request.query.data) p.memory_query = retrieve.memory_query.data;
  p.output = request.output.data;
  p.fusion = request.fusion == Fusion::kGated ? cuda::Fusion::kGated : cuda::Fusion::kJoint;
  if (!HasLocalRows(request)) return p;
  p.local_keys = request.local_keys.data;
  p.local_values = request.local_values.data;
  p.local_key_row_stride = request.local_keys.row_stride;
  p.local_key_head_stride = request.local_keys.head_stride;
  p.local_value_row_stride = request.local_values.row_stride;
  p.local_value_head_stride = request.local_values.head_stride;
  p.local_mask = request.mask.kind == LocalMask::Kind::kNone            ? cuda::LocalMask::kNone
                 : request.mask.kind == LocalMask::Kind::kSlidingWindow ? cuda::LocalMask::kSlidingWindow
                                                                        : cuda::LocalMask::kCausal;
  p.local_window = request.mask.window;
  return p;
}

FusedInputs::FusedInputs(const AttendRequest& request, const cuda::AttendProblem& problem, DeviceTray& tray)
    : has_local_(HasLocalRows(request)),
      rows_(tray.Input<cuda::MemoryRows>(problem.batch)),
      memories_(tray.Input<const cuda::MemoryRows*>(problem.batch)),
      query_offsets_(tray.Input<int64_t>(problem.batch + 1)),
      local_offsets_(tray.Input<int64_t>(problem.batch + 1)),
      gate_(tray.Input<float>(problem.q_heads)),
      ranking_(request.retrieve, problem, tray) {}

void FusedInputs::Fill(const AttendRequest& request, const DeviceTray& tray, cuda::AttendProblem& problem) const {
  const RetrieveRequest& retrieve = request.retrieve;
  ranking_.Fill(retrieve, tray, problem);
  for (size_t head = 0; head < retrieve.heads.size(); ++head) tray.Host(gate_)[head] = retrieve.heads[head].gate;
  for (size_t i = 0; i < retrieve.sequences.size(); ++i) {
    const Sequence& sequence = retrieve.sequences[i];
    tray.Host(memories_)[i] = tray.OnDevice(rows_) + i;
    tray.Host(query_offsets_)[i] = sequence.query_begin;
    tray.Host(query_offsets_)[i + 1] = sequence.query_end;
  }
  problem.query_offsets = tray.OnDevice(query_offsets_);
  problem.memories = tray.OnDevice(memories_);
  if (has_local_) problem.local_offsets = tray.OnDevice(local_offsets_);
  problem.gate = tray.OnDevice(gate_);
}

void FusedInputs::See(const RetrieveRequest& retrieve, const Sequence& sequence, size_t number, int64_t memory_end,
                      const MemoryMirror::View& view, const DeviceTray& tray) const {
  tray.Host(rows_)[number] = view.rows;
  tray.Host(local_offsets_)[number] = sequence.local_begin;
  tray.Host(local_offsets_)[number + 1] = sequence.local_end;
  for (int64_t token = sequence.query_begin; token < sequence.query_end; ++token) {
    ranking_.Positions(tray)[token] = QueryPosition(retrieve, sequence, memory_end, token) - view.gap;
  }
}

}  // namespace mneme
