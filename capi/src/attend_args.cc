// SPDX-License-Identifier: Apache-2.0
#include "capi/src/attend_args.h"

#include <cmath>
#include <optional>

#include "base/status.h"
#include "capi/src/defaults.h"

namespace mneme::capi {
namespace {

template <typename Holds>
absl::Status CheckEach(absl::string_view name, const float* values, int64_t n, absl::string_view expected,
                       const Holds& holds) {
  if (values == nullptr) return absl::OkStatus();
  for (int64_t i = 0; i < n; ++i) {
    if (!holds(values[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("args.", name, "[", i, "]: expected ", expected, ", got ", values[i]));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPolicy(const RetrieveArgs& args, const Batch& batch) {
  if (args.position_policy < MNEME_POSITION_AS_STORED || args.position_policy > MNEME_POSITION_CLAMPED) {
    return absl::InvalidArgumentError(
        absl::StrCat("args.position_policy: expected a mneme_position_policy (0 to 4), got ", args.position_policy));
  }
  if (args.position_policy == MNEME_POSITION_WINDOW_START && args.query_local_positions == nullptr) {
    return NullArgument("args.query_local_positions (needed by MNEME_POSITION_WINDOW_START)");
  }
  if (args.position_policy == MNEME_POSITION_AS_STORED) return absl::OkStatus();
  for (const auto& memory : batch.memories) {
    if (memory != nullptr && memory->memory->options().keys_rotated) {
      return absl::FailedPreconditionError(absl::StrCat(
          "args.position_policy: memory \"", memory->memory->name(),
          "\" stores rotated keys, which can only be used as stored (MNEME_POSITION_AS_STORED), got policy ",
          args.position_policy));
    }
  }
  return absl::OkStatus();
}

// Returns: the card's scale. Hosts round 1 / sqrt(key_dim) in float or in double. A card's scale that is within two
// ulps of UsualScale counts as UsualScale, so that a sequence without a memory gets the same bits with and without a
// card.
float ScaleOf(const LayerCard& layer) {
  const float usual = UsualScale(layer.key_dim);
  const float two_ulps = 2 * (std::nextafter(usual, 1e30f) - usual);
  return std::fabs(layer.scale - usual) <= two_ulps ? usual : layer.scale;
}

absl::Status CheckHeads(const RetrieveArgs& args, int64_t heads) {
  const auto finite = [](float x) { return std::isfinite(x); };
  const auto distance = [](float x) { return std::fabs(x) <= static_cast<float>(kMaxPosition); };  // NaN is not
  const auto not_negative = [](float x) { return std::isfinite(x) && x >= 0; };
  absl::Status checks[] = {
      CheckEach("distance", args.distance, heads, "a number within 2^48", distance),
      CheckEach("memory_bias", args.memory_bias, heads, "a finite number", finite),
      CheckEach("decay", args.decay, heads, "a finite number, 0 or more", not_negative),
      CheckEach("scale", args.scale, heads, "a finite number above 0",
                [](float x) { return std::isfinite(x) && x > 0; }),
      CheckEach("gate", args.gate, heads, "a number", [](float x) { return !std::isnan(x); }),
      CheckEach("default_distance", &args.default_distance, 1, "a number within 2^48", distance),
      CheckEach("decay_beyond", &args.decay_beyond, 1, "a finite number, 1 or more",
                [](float x) { return std::isfinite(x) && x >= 1; }),
  };
  for (const absl::Status& check : checks) {
    if (!check.ok()) return check;
  }
  if (args.default_top_k < 0) {
    return absl::InvalidArgumentError(absl::StrCat("args.default_top_k: expected 0 or more, got ", args.default_top_k));
  }
  for (int64_t head = 0; args.top_k != nullptr && head < heads; ++head) {
    if (args.top_k[head] < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("args.top_k[", head, "]: expected 0 (no memory) or more, got ", args.top_k[head]));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Batch> Batch::Read(mneme_memory* const* memories, size_t batch, const mneme_snapshot* const* snapshots,
                                  int32_t layer, std::pmr::memory_resource* arena) {
  constexpr size_t kMaxBatch = size_t{1} << 20;
  if (batch < 1 || batch > kMaxBatch) {
    return absl::InvalidArgumentError(absl::StrCat("batch: expected 1 to 2^20 sequences, got ", batch));
  }
  if (memories == nullptr) return NullArgument("memories");
  Batch result(arena);
  result.memories.resize(batch);
  result.snapshots.resize(batch);
  const LayerCard* shape = nullptr;
  for (size_t i = 0; i < batch; ++i) {
    if (memories[i] != nullptr) {
      result.memories[i] = FindOpen<MemoryObject>(memories[i]);
      if (result.memories[i] == nullptr) return NotOpen<MemoryObject>(absl::StrCat("memories[", i, "]"));
      const Memory& memory = *result.memories[i]->memory;
      const int place = memory.card().FindLayer(layer);
      if (place < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("args.layer: expected one that memory \"", memory.name(), "\" has, got ", layer));
      }
      const LayerCard& own = memory.card().layers[static_cast<size_t>(place)];
      if (shape != nullptr && !(own == *shape)) {
        return absl::InvalidArgumentError(absl::StrCat("memories[", i, "]: expected the layer ", layer,
                                                       " of the batch's first memory, got one that differs"));
      }
      shape = &own;
      if (result.first == nullptr) result.first = result.memories[i].get();
    }
    if (snapshots == nullptr || snapshots[i] == nullptr) continue;
    result.snapshots[i] = FindOpen<SnapshotObject>(snapshots[i]);
    if (result.snapshots[i] == nullptr) return NotOpen<SnapshotObject>(absl::StrCat("args.snapshots[", i, "]"));
    if (result.memories[i] == nullptr || result.snapshots[i]->memory != result.memories[i]->memory) {
      return absl::InvalidArgumentError(absl::StrCat("args.snapshots[", i, "]: expected a snapshot of memories[", i,
                                                     "], got one of \"", result.snapshots[i]->memory->name(), "\""));
    }
  }
  return result;
}

const LayerCard* Batch::Layer(int32_t layer) const {
  if (first == nullptr) return nullptr;
  const ModelCard& card = first->memory->card();
  return &card.layers[static_cast<size_t>(card.FindLayer(layer))];
}

absl::Status CheckPositions(absl::string_view name, const int64_t* positions, int64_t n) {
  if (positions == nullptr) return absl::OkStatus();
  for (int64_t i = 0; i < n; ++i) {
    if (positions[i] < -kMaxPosition || positions[i] > kMaxPosition) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, "[", i, "]: expected a position within 2^48, got ", positions[i]));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOffsets(absl::string_view name, const int64_t* offsets, size_t batch, int64_t total) {
  if (offsets == nullptr) {
    if (batch == 1) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected an array for a batch of ", batch, " sequences, got NULL"));
  }
  int64_t before = 0;
  for (size_t i = 0; i <= batch; ++i) {
    const bool ends = i == batch;
    if (offsets[i] < before || offsets[i] > total || (i == 0 && offsets[i] != 0) || (ends && offsets[i] != total)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, "[", i, "]: expected ascending offsets from 0 to ", total, ", got ", offsets[i]));
    }
    before = offsets[i];
  }
  return absl::OkStatus();
}

absl::Status NameArgument(const absl::Status& status) {
  const std::optional<Argument> argument = ArgumentOf(status);
  if (!argument.has_value()) return status;
  // Parameters of the functions have the engine's names. All others are fields of the struct `args`.
  if (*argument == Argument::kBatch || *argument == Argument::kMemories || *argument == Argument::kGraph) return status;
  return absl::Status(status.code(), absl::StrCat("args.", status.message()));
}

absl::Status ReadRetrieve(const RetrieveArgs& args, const Batch& batch, const LayerCard& layer, int64_t tokens,
                          RetrieveRequest& request, std::pmr::vector<HeadRule>& heads,
                          std::pmr::vector<Sequence>& sequences) {
  MNEME_RETURN_IF_ERROR(CheckPolicy(args, batch));
  MNEME_RETURN_IF_ERROR(CheckHeads(args, layer.query_heads));
  MNEME_RETURN_IF_ERROR(CheckOffsets("args.query_offsets", args.query_offsets, batch.memories.size(), tokens));
  MNEME_RETURN_IF_ERROR(CheckPositions("args.query_positions", args.query_positions, tokens));
  MNEME_RETURN_IF_ERROR(CheckPositions("args.query_local_positions", args.query_local_positions, tokens));
  if (args.normalise_query != 0 && args.normalise_query != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("args.normalise_query: expected 0 or 1, got ", args.normalise_query));
  }
  request.normalise_query = args.normalise_query != 0;
  request.policy = static_cast<PositionPolicy>(args.position_policy - MNEME_POSITION_AS_STORED);
  request.query_positions = args.query_positions;
  request.query_local_positions = args.query_local_positions;
  request.decay_beyond = args.decay_beyond;

  const float scale = ScaleOf(layer);
  heads.resize(static_cast<size_t>(layer.query_heads));
  for (size_t head = 0; head < heads.size(); ++head) {
    HeadRule& rule = heads[head];
    rule.top_k = args.top_k != nullptr ? args.top_k[head] : args.default_top_k;
    rule.distance = args.distance != nullptr ? args.distance[head] : args.default_distance;
    rule.memory_bias = args.memory_bias != nullptr ? args.memory_bias[head] : 0.0f;
    rule.decay = args.decay != nullptr ? args.decay[head] : 0.0f;
    rule.scale = args.scale != nullptr ? args.scale[head] : scale;
    rule.gate = args.gate != nullptr ? args.gate[head] : 0.0f;
  }
  sequences.resize(batch.memories.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& sequence = sequences[i];
    sequence.memory = batch.memories[i] != nullptr ? batch.memories[i]->memory.get() : nullptr;
    sequence.snapshot = batch.snapshots[i] != nullptr ? &batch.snapshots[i]->snapshot : nullptr;
    sequence.query_begin = args.query_offsets != nullptr ? args.query_offsets[i] : 0;
    sequence.query_end = args.query_offsets != nullptr ? args.query_offsets[i + 1] : tokens;
    sequence.memory_begin = args.memory_begin != nullptr ? args.memory_begin[i] : 0;
    sequence.memory_end = args.memory_end != nullptr ? args.memory_end[i] : -1;
    if (sequence.memory_begin < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("args.memory_begin[", i, "]: expected 0 or more, got ", sequence.memory_begin));
    }
    if (args.memory_end != nullptr && sequence.memory_end < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("args.memory_end[", i, "]: expected 0 or more, got ", sequence.memory_end));
    }
  }
  request.heads = heads;
  request.sequences = sequences;
  return absl::OkStatus();
}

}  // namespace mneme::capi
