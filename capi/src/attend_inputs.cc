// SPDX-License-Identifier: Apache-2.0
#include "capi/src/attend_inputs.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "capi/src/boundary.h"
#include "capi/src/defaults.h"
#include "capi/src/tensors.h"

namespace mneme::capi {
namespace {

absl::Status ReadMask(const mneme_attend_args& args, LocalMask& mask) {
  switch (args.local_mask) {
    case MNEME_MASK_CAUSAL: mask.kind = LocalMask::Kind::kCausal; break;
    case MNEME_MASK_NONE: mask.kind = LocalMask::Kind::kNone; break;
    case MNEME_MASK_SLIDING_WINDOW:
      mask.kind = LocalMask::Kind::kSlidingWindow;
      mask.window = args.mask_window;
      if (mask.window < 1) {
        return absl::InvalidArgumentError(
            absl::StrCat("args.mask_window: expected 1 token or more, got ", args.mask_window));
      }
      break;
    default:
      mask.kind = LocalMask::Kind::kBits;
      mask.bits = args.mask_bits;
      mask.bits_stride = args.mask_bits_stride;
      if (mask.bits == nullptr) return NullArgument("args.mask_bits");
  }
  return absl::OkStatus();
}

// The local rows and the mask of sequence `number`; local_rows: those of the whole batch.
absl::Status ReadLocalRange(const mneme_attend_args& args, size_t number, int64_t local_rows, const LocalMask& mask,
                            Sequence& sequence) {
  sequence.local_begin = args.local_offsets != nullptr ? args.local_offsets[number] : 0;
  sequence.local_end = args.local_offsets != nullptr ? args.local_offsets[number + 1] : local_rows;
  const int64_t rows = sequence.local_end - sequence.local_begin;
  sequence.mask_offset =
      args.mask_offsets != nullptr ? args.mask_offsets[number] : rows - (sequence.query_end - sequence.query_begin);
  // With these bounds no sum of offsets, query numbers and windows can overflow.
  constexpr int64_t kMaxOffset = int64_t{1} << 48;
  if (sequence.mask_offset < -kMaxOffset || sequence.mask_offset > kMaxOffset) {
    return absl::InvalidArgumentError(
        absl::StrCat("args.mask_offsets[", number, "]: expected an offset within 2^48, got ", sequence.mask_offset));
  }
  constexpr int64_t kMaxStride = int64_t{1} << 40;
  if (mask.kind == LocalMask::Kind::kBits && (mask.bits_stride < (rows + 7) / 8 || mask.bits_stride > kMaxStride)) {
    return absl::InvalidArgumentError(absl::StrCat("args.mask_bits_stride: expected ", (rows + 7) / 8,
                                                   " bytes or more for the ", rows, " local rows of sequence ", number,
                                                   ", up to 2^40, got ", mask.bits_stride));
  }
  return absl::OkStatus();
}

absl::Status ReadLocal(const mneme_attend_args& args, const LayerCard& layer, DeviceTensors& on_device,
                       AttendRequest& request, absl::Span<Sequence> sequences) {
  if (args.local_mask < MNEME_MASK_CAUSAL || args.local_mask > MNEME_MASK_BITS) {
    return absl::InvalidArgumentError(
        absl::StrCat("args.local_mask: expected a mneme_local_mask (0 to 3), got ", args.local_mask));
  }
  if ((args.local_keys == nullptr) != (args.local_values == nullptr)) {
    return NullArgument(args.local_keys == nullptr ? "args.local_keys (with local_values)"
                                                   : "args.local_values (with local_keys)");
  }
  if (args.local_keys == nullptr) return absl::OkStatus();
  MNEME_RETURN_IF_ERROR(on_device.Read("args.local_keys", args.local_keys, &request.local_keys));
  MNEME_RETURN_IF_ERROR(on_device.Read("args.local_values", args.local_values, &request.local_values));
  const RowTensor& keys = request.local_keys;
  const RowTensor& values = request.local_values;
  MNEME_RETURN_IF_ERROR(
      CheckShape("args.local_keys", keys.rows, keys.heads, keys.dim, keys.rows, layer.kv_heads, layer.key_dim));
  MNEME_RETURN_IF_ERROR(CheckShape("args.local_values", values.rows, values.heads, values.dim, keys.rows,
                                   layer.kv_heads, layer.value_dim));
  MNEME_RETURN_IF_ERROR(CheckOffsets("args.local_offsets", args.local_offsets, sequences.size(), keys.rows));
  MNEME_RETURN_IF_ERROR(ReadMask(args, request.mask));
  for (size_t i = 0; i < sequences.size(); ++i) {
    MNEME_RETURN_IF_ERROR(ReadLocalRange(args, i, keys.rows, request.mask, sequences[i]));
  }
  return absl::OkStatus();
}

// Returns: a card with the shapes of the tensors, for a call without a memory, which has no card.
absl::StatusOr<LayerCard> LayerOfTensors(const mneme_attend_args& args, const RowTensor& query) {
  if (args.local_keys == nullptr || args.local_values == nullptr) {
    return absl::InvalidArgumentError(
        "memories: expected at least one memory, or local_keys and local_values; got neither");
  }
  MNEME_ASSIGN_OR_RETURN(const RowTensor keys, ReadRowTensor("args.local_keys", args.local_keys));
  MNEME_ASSIGN_OR_RETURN(const RowTensor values, ReadRowTensor("args.local_values", args.local_values));
  LayerCard layer;
  layer.layer = args.layer;
  layer.query_heads = static_cast<int32_t>(query.heads);
  layer.kv_heads = static_cast<int32_t>(keys.heads);
  layer.key_dim = static_cast<int32_t>(keys.dim);
  layer.value_dim = static_cast<int32_t>(values.dim);
  layer.scale = UsualScale(std::max<int64_t>(1, keys.dim));
  MNEME_RETURN_IF_ERROR(ValidateLayer(layer));
  return layer;
}

RetrieveArgs SharedArgs(const mneme_attend_args& args) {
  return {.position_policy = args.position_policy,
          .normalise_query = args.normalise_query,
          .query_offsets = args.query_offsets,
          .query_positions = args.query_positions,
          .query_local_positions = args.query_local_positions,
          .memory_begin = args.memory_begin,
          .memory_end = args.memory_end,
          .top_k = args.top_k,
          .distance = args.distance,
          .memory_bias = args.memory_bias,
          .decay = args.decay,
          .scale = args.scale,
          .gate = args.gate,
          .default_top_k = args.default_top_k,
          .default_distance = args.default_distance,
          .decay_beyond = args.decay_beyond};
}

// The query, which also gives the card of a call without a memory (of_tensors), and the memory query.
absl::Status ReadQueries(const mneme_attend_args& args, bool has_card, LayerCard& of_tensors, DeviceTensors& on_device,
                         AttendRequest& request) {
  RowTensor& query = request.query;
  MNEME_RETURN_IF_ERROR(on_device.Read("args.query", args.query, &query));
  if (!has_card) {
    MNEME_ASSIGN_OR_RETURN(of_tensors, LayerOfTensors(args, query));
  }
  const LayerCard& layer = request.retrieve.layer;
  const int64_t tokens = query.rows;
  MNEME_RETURN_IF_ERROR(
      CheckShape("args.query", tokens, query.heads, query.dim, tokens, layer.query_heads, layer.key_dim));
  RowTensor& memory_query = request.retrieve.memory_query;
  if (args.memory_query == nullptr) {
    memory_query = query;
    return absl::OkStatus();
  }
  MNEME_RETURN_IF_ERROR(on_device.Read("args.memory_query", args.memory_query, &memory_query));
  return CheckShape("args.memory_query", memory_query.rows, memory_query.heads, memory_query.dim, tokens,
                    layer.query_heads, layer.key_dim);
}

}  // namespace

absl::Status CheckFusion(const mneme_attend_args& args) {
  if (args.fusion >= MNEME_FUSION_JOINT && args.fusion <= MNEME_FUSION_LOCAL_ONLY) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("args.fusion: expected a mneme_fusion (0 to 3), got ", args.fusion));
}

absl::Status ReadAttendInputs(const mneme_attend_args& args, const Batch& batch, LayerCard& of_tensors,
                              DeviceTensors& on_device, AttendRequest& request, std::pmr::vector<HeadRule>& heads,
                              std::pmr::vector<Sequence>& sequences) {
  const LayerCard& layer = request.retrieve.layer;
  MNEME_RETURN_IF_ERROR(ReadQueries(args, batch.first != nullptr, of_tensors, on_device, request));
  MNEME_RETURN_IF_ERROR(
      ReadRetrieve(SharedArgs(args), batch, layer, request.query.rows, request.retrieve, heads, sequences));
  MNEME_RETURN_IF_ERROR(ReadLocal(args, layer, on_device, request, absl::MakeSpan(sequences)));
  request.fusion = static_cast<Fusion>(args.fusion);
  request.retrieve.use_memory_bias = request.fusion == Fusion::kJoint;
  return absl::OkStatus();
}

}  // namespace mneme::capi
