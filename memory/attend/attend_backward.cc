// SPDX-License-Identifier: Apache-2.0
#include "memory/attend/attend_backward.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <memory_resource>
#include <vector>

#include "attention/local_backward.h"
#include "base/scratch.h"
#include "base/status.h"
#include "memory/attend/check_queries.h"
#include "memory/attend/reported_rows.h"
#include "memory/attend/tile_backward.h"

namespace mneme {
namespace {

// A sequence's queries are divided into so many tiles that all KV heads together have about this many, and a tile has
// this many queries or more. Each tile has sums of its own for the local rows, which are added in a fixed order: the
// result does not depend on the number of threads.
constexpr int64_t kTiles = 16;
constexpr int64_t kFewestQueriesPerTile = 64;
// Local rows of one work item that adds the sums of tiles.
constexpr int64_t kRowsPerItem = 64;

// How the work on one sequence is divided.
struct Division {
  Division(const LayerCard& layer, const Sequence& sequence) {
    const int64_t queries = sequence.query_end - sequence.query_begin;
    const int64_t wanted = std::max<int64_t>(1, kTiles / layer.kv_heads);
    queries_per_tile = std::max(kFewestQueriesPerTile, (queries + wanted - 1) / wanted);
    tiles = std::max<int64_t>(1, (queries + queries_per_tile - 1) / queries_per_tile);
    items = queries == 0 ? 0 : layer.kv_heads * tiles;
  }
  int64_t queries_per_tile;
  int64_t tiles;  // of each KV head
  int64_t items;  // tiles of all KV heads
};

// The sums of the tiles of one sequence. One buffer serves all sequences in turn.
class SumBuffer {
 public:
  // Makes room for the sequence that needs most of it.
  explicit SumBuffer(const AttendBackwardRequest& request) : layer_(request.forward.retrieve.layer) {
    size_t key_floats = 0, value_floats = 0, items = 0;
    for (const Sequence& sequence : request.forward.retrieve.sequences) {
      const auto own = static_cast<size_t>(Division(layer_, sequence).items);
      const size_t rows =
          HasLocalRows(request.forward, sequence) ? static_cast<size_t>(sequence.local_end - sequence.local_begin) : 0;
      items = std::max(items, own);
      key_floats = std::max(key_floats, own * rows * static_cast<size_t>(PaddedDim(layer_.key_dim)));
      value_floats = std::max(value_floats, own * rows * static_cast<size_t>(PaddedDim(layer_.value_dim)));
    }
    // Not initialised: each tile clears what is its own.
    if (request.local_keys.data != nullptr) keys_.reset(new float[key_floats]);
    if (request.local_values.data != nullptr) values_.reset(new float[value_floats]);
    heads_.resize(items * static_cast<size_t>(layer_.group()));
  }

  TileSums OfItem(int64_t item, int64_t local_rows) {
    return {.local_keys = Rows(keys_, item, local_rows, layer_.key_dim),
            .local_values = Rows(values_, item, local_rows, layer_.value_dim),
            .heads = heads_.data() + item * layer_.group()};
  }

 private:
  static float* Rows(const std::unique_ptr<float[]>& buffer, int64_t item, int64_t local_rows, int64_t dim) {
    return buffer == nullptr ? nullptr : buffer.get() + item * local_rows * PaddedDim(dim);
  }

  const LayerCard& layer_;
  std::unique_ptr<float[]> keys_, values_;  // [items][local rows][PaddedDim]; null: not wanted
  std::vector<HeadGradients> heads_;        // [items][group]
};

void ClearRow(const MutableRowTensor& tensor, int64_t row, int64_t head) {
  if (tensor.data == nullptr) return;
  std::memset(tensor.Row(row, head), 0, static_cast<size_t>(tensor.dim) * DTypeSize(tensor.dtype));
}

// Writes zeros to the gradients of the sequence's local rows.
void ClearLocalGradients(const AttendBackwardRequest& request, const Sequence& sequence) {
  for (int64_t row = sequence.local_begin; row < sequence.local_end; ++row) {
    for (int64_t head = 0; head < request.forward.retrieve.layer.kv_heads; ++head) {
      ClearRow(request.local_keys, row, head);
      ClearRow(request.local_values, row, head);
    }
  }
}

// The same for all of its gradients.
void ClearGradients(const AttendBackwardRequest& request, const Sequence& sequence) {
  for (int64_t token = sequence.query_begin; token < sequence.query_end; ++token) {
    for (int64_t head = 0; head < request.forward.retrieve.layer.query_heads; ++head) {
      ClearRow(request.query, token, head);
      ClearRow(request.memory_query, token, head);
    }
  }
  ClearLocalGradients(request, sequence);
}

// Adds up what the tiles of one KV head have of local rows [begin, end), in the order of the tiles, and writes it.
void WriteLocalRows(const AttendBackwardRequest& request, const Sequence& sequence, const Division& division,
                    int64_t kv_head, int64_t begin, int64_t end, SumBuffer& buffer) {
  const int64_t rows = sequence.local_end - sequence.local_begin;
  const auto write = [&](const MutableRowTensor& tensor, float* TileSums::*member) {
    if (tensor.data == nullptr) return;
    const int64_t stride = PaddedDim(tensor.dim);
    for (int64_t row = begin; row < end; ++row) {
      float* const sum = buffer.OfItem(kv_head * division.tiles, rows).*member + row * stride;
      for (int64_t tile = 1; tile < division.tiles; ++tile) {
        const float* const own = buffer.OfItem(kv_head * division.tiles + tile, rows).*member + row * stride;
        for (int64_t i = 0; i < tensor.dim; ++i) sum[i] += own[i];
      }
      ConvertFromF32(sum, tensor.dtype, tensor.Row(sequence.local_begin + row, kv_head),
                     static_cast<size_t>(tensor.dim));
    }
  };
  write(request.local_keys, &TileSums::local_keys);
  write(request.local_values, &TileSums::local_values);
}

absl::Status BackwardOfSequence(const AttendBackwardRequest& request, const Sequence& sequence,
                                const ReportedRows* rows, Executor& executor, SumBuffer& buffer,
                                absl::Span<HeadGradients> totals) {
  const LayerCard& layer = request.forward.retrieve.layer;
  const Division division(layer, sequence);
  const int64_t local_rows = HasLocalRows(request.forward, sequence) ? sequence.local_end - sequence.local_begin : 0;
  MNEME_RETURN_IF_ERROR(
      ParallelForStatus(executor, static_cast<size_t>(division.items), "attend backward", [&](size_t i) {
        const auto item = static_cast<int64_t>(i);
        const int64_t begin = item % division.tiles * division.queries_per_tile;
        const Tile tile = {item / division.tiles, begin,
                           std::min(sequence.query_end - sequence.query_begin, begin + division.queries_per_tile)};
        BackwardOfTile(request, sequence, rows, tile, buffer.OfItem(item, local_rows));
        return absl::OkStatus();
      }));
  for (int64_t item = 0; item < division.items; ++item) {
    const HeadGradients* const own = buffer.OfItem(item, local_rows).heads;
    for (int64_t g = 0; g < layer.group(); ++g) {
      HeadGradients& total = totals[static_cast<size_t>(item / division.tiles * layer.group() + g)];
      total.memory_bias += own[g].memory_bias;
      total.gate += own[g].gate;
      total.scale += own[g].scale;
    }
  }
  if (local_rows == 0 || division.items == 0) {
    ClearLocalGradients(request, sequence);
    return absl::OkStatus();
  }
  const int64_t parts = (local_rows + kRowsPerItem - 1) / kRowsPerItem;
  executor.ParallelFor(static_cast<size_t>(layer.kv_heads * parts), [&](size_t i) {
    const int64_t begin = static_cast<int64_t>(i) % parts * kRowsPerItem;
    WriteLocalRows(request, sequence, division, static_cast<int64_t>(i) / parts, begin,
                   std::min(local_rows, begin + kRowsPerItem), buffer);
  });
  return absl::OkStatus();
}

}  // namespace

absl::Status AttendBackward(const AttendBackwardRequest& request, Executor& executor) {
  const AttendRequest& forward = request.forward;
  const absl::Span<const Sequence> sequences = forward.retrieve.sequences;
  const bool retrieves = RetrievesRows(forward);
  const auto failed = [&](size_t i) { return !request.failed.empty() && request.failed[i] != 0; };
  // All that can fail comes before the first output is written.
  Scratch scratch;
  std::vector<std::unique_ptr<ReportedRows>> rows(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (failed(i)) continue;
    MNEME_RETURN_IF_ERROR(CheckQueries(forward, sequences[i], request.memory_query_is_query));
    if (!retrieves || sequences[i].memory == nullptr) continue;
    rows[i] = std::make_unique<ReportedRows>(forward, sequences[i], &scratch);
    MNEME_RETURN_IF_ERROR(rows[i]->Read(executor));
  }
  SumBuffer buffer(request);
  std::vector<HeadGradients> totals(forward.retrieve.heads.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (failed(i)) {
      ClearGradients(request, sequences[i]);
      continue;
    }
    MNEME_RETURN_IF_ERROR(
        BackwardOfSequence(request, sequences[i], rows[i].get(), executor, buffer, absl::MakeSpan(totals)));
  }
  for (size_t head = 0; head < totals.size(); ++head) {
    if (request.memory_bias != nullptr) request.memory_bias[head] = static_cast<float>(totals[head].memory_bias);
    if (request.gate != nullptr) request.gate[head] = static_cast<float>(totals[head].gate);
    if (request.scale != nullptr) request.scale[head] = static_cast<float>(totals[head].scale);
  }
  return absl::OkStatus();
}

}  // namespace mneme
