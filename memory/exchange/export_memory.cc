// SPDX-License-Identifier: Apache-2.0
#include "memory/exchange/export_memory.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

#include "base/dtype.h"
#include "base/status.h"
#include "memory/exchange/exchange_rows.h"
#include "memory/exchange/memory_contents.h"
#include "memory/memory_state.h"
#include "memory/segment/column_writer.h"

namespace mneme {
namespace {

// Rows [row, row + n) of a segment, of one chunk.
struct Piece {
  Segment* segment = nullptr;
  bool in_tail = false;
  int64_t row = 0;
  int64_t n = 0;
};

class Exporter {
 public:
  Exporter(const Memory& memory, const TensorWriter::Options& options, const Progress& progress)
      : memory_(memory), options_(options), progress_(progress), state_(memory.TakeSnapshot().state) {}

  absl::Status Run() {
    Describe();
    const std::vector<ExchangeTensor> tensors = TensorsOf(contents_);
    std::vector<TensorEntry> entries;
    TensorChecksums none;
    for (const ExchangeTensor& tensor : tensors) {
      entries.push_back(tensor.entry);
      none[tensor.entry.name] = 0;
    }
    MNEME_ASSIGN_OR_RETURN(const auto template_metadata, FormatMetadata(contents_, none));
    MNEME_ASSIGN_OR_RETURN(writer_, TensorWriter::Create(options_, std::move(entries), template_metadata));
    for (size_t i = 0; i < tensors.size(); ++i) MNEME_RETURN_IF_ERROR(WriteTensor(tensors, i));
    MNEME_ASSIGN_OR_RETURN(const auto metadata, FormatMetadata(contents_, writer_->Checksums()));
    return writer_->Publish(metadata);
  }

 private:
  void Describe() {
    contents_.name = memory_.name();
    contents_.card = memory_.card();
    contents_.options = memory_.options();
    contents_.next_token = state_->WholeEnd();
    contents_.first_kept = std::min(state_->first_kept, contents_.next_token);
    attachments_ = state_->attachments;
    std::sort(attachments_.begin(), attachments_.end(),
              [](const Attachment& a, const Attachment& b) { return a.ref.name < b.ref.name; });
    for (const Attachment& attachment : attachments_) contents_.attachments.push_back(attachment.ref);
    for (const auto& [begin, end] : contents_.HeldRanges()) AddPieces(begin, end);
  }

  void AddPieces(int64_t begin, int64_t end) {
    const auto add = [&](Segment* segment, bool in_tail, int64_t first_token, int64_t last_token) {
      for (int64_t token = std::max(begin, first_token); token < std::min(end, last_token);) {
        const int64_t row = token - first_token;
        const int64_t in_chunk = kChunkRows - row % kChunkRows;
        const int64_t n = std::min({in_chunk, std::min(end, last_token) - token});
        pieces_.push_back({segment, in_tail, row, n});
        token += n;
      }
    };
    for (const SegmentView& view : state_->sealed) add(view.segment.get(), false, view.first_token, view.end());
    add(state_->tail.get(), true, state_->tail_first, contents_.next_token);
  }

  absl::Status WriteTensor(const std::vector<ExchangeTensor>& tensors, size_t number) {
    switch (tensors[number].kind) {
      case TensorKind::kPositions:
      case TensorKind::kTokenIds: return WriteTokenColumn(number, tensors[number].kind);
      case TensorKind::kKeys: return WriteRows(number, tensors[number].place, RowKind::kKeys);
      case TensorKind::kValues: return WriteRows(number, tensors[number].place, RowKind::kValues);
      case TensorKind::kKeyScales:
      case TensorKind::kValueScales: return absl::OkStatus();  // written beside the rows
      case TensorKind::kAttachment: return WriteAttachment(number, attachments_[tensors[number].place]);
    }
    return absl::OkStatus();
  }

  absl::Status WriteTokenColumn(size_t number, TensorKind kind) {
    std::vector<char> out;
    for (const Piece& piece : pieces_) {
      MNEME_ASSIGN_OR_RETURN(const auto columns, piece.segment->Columns(piece.row + piece.n));
      const RowArray& column = kind == TensorKind::kPositions ? columns->positions : columns->token_ids;
      out.resize(static_cast<size_t>(piece.n) * column.row_bytes());
      CopyRowBytes(RowSourceOf(column), piece.row, piece.n, column.row_bytes(), out.data());
      MNEME_RETURN_IF_ERROR(Write(number, out));
    }
    return absl::OkStatus();
  }

  // Writes the rows of all heads, and with kI8 their scales, whose tensor is the next one.
  absl::Status WriteRows(size_t number, size_t layer, RowKind kind) {
    const LayerCard& card = contents_.card.layers[layer];
    const DType dtype = contents_.options.stored_dtype;
    ExchangeRows rows(dtype, card.kv_heads, kind == RowKind::kKeys ? card.key_dim : card.value_dim);
    std::vector<char> raw;
    for (const Piece& piece : pieces_) {
      rows.Resize(piece.n);
      raw.resize(static_cast<size_t>(piece.n) * rows.row_bytes());
      for (int32_t head = 0; head < card.kv_heads; ++head) {
        MNEME_RETURN_IF_ERROR(ReadRaw(piece, layer, head, kind, raw));
        rows.SetHead(head, raw);
      }
      MNEME_RETURN_IF_ERROR(Write(number, rows.elements()));
      if (dtype == DType::kI8) MNEME_RETURN_IF_ERROR(Write(number + 1, rows.scales()));
    }
    return absl::OkStatus();
  }

  absl::Status ReadRaw(const Piece& piece, size_t layer, int32_t head, RowKind kind, std::vector<char>& raw) const {
    const auto place = static_cast<size_t>(head);
    const size_t row_bytes = raw.size() / static_cast<size_t>(piece.n);
    const int64_t end = piece.row + piece.n;
    if (!piece.in_tail) {
      const Column column{contents_.card.layers[layer].layer, head,
                          kind == RowKind::kKeys ? ColumnKind::kKeys : ColumnKind::kValues};
      return memory_.context().database().ReadChunkRows(piece.segment->id(), column, piece.row, end, row_bytes,
                                                        absl::MakeSpan(raw));
    }
    if (kind == RowKind::kKeys) {
      MNEME_ASSIGN_OR_RETURN(const auto keys, piece.segment->Keys(layer, end));
      CopyRowBytes(RowSourceOf(*keys->heads[place]), piece.row, piece.n, row_bytes, raw.data());
    } else {
      MNEME_ASSIGN_OR_RETURN(const auto values, piece.segment->Values(layer, end));
      CopyRowBytes(RowSourceOf(*values->heads[place]), piece.row, piece.n, row_bytes, raw.data());
    }
    return absl::OkStatus();
  }

  absl::Status WriteAttachment(size_t number, const Attachment& attachment) {
    if (attachment.bytes != nullptr) return Write(number, *attachment.bytes);
    const absl::StatusOr<std::string> bytes = memory_.context().database().GetAttachment(attachment.ref);
    if (absl::IsNotFound(bytes.status())) {
      return absl::UnavailableError(absl::StrCat("attachment \"", attachment.ref.name, "\" of memory \"",
                                                 memory_.name(), "\" was replaced during the export; export again"));
    }
    if (!bytes.ok()) return bytes.status();
    return Write(number, *bytes);
  }

  absl::Status Write(size_t number, absl::Span<const char> bytes) {
    MNEME_RETURN_IF_ERROR(writer_->Append(number, bytes));
    written_ += static_cast<int64_t>(bytes.size());
    if (!progress_ || progress_(written_, static_cast<int64_t>(writer_->bytes()))) return absl::OkStatus();
    return absl::CancelledError("the export was cancelled by its progress callback");
  }

  const Memory& memory_;
  const TensorWriter::Options& options_;
  const Progress& progress_;
  const std::shared_ptr<const MemoryState> state_;  // keeps the segments that pieces_ names
  MemoryContents contents_;
  std::vector<Attachment> attachments_;  // by name, as in contents_
  std::vector<Piece> pieces_;            // of the held tokens, in order
  std::unique_ptr<TensorWriter> writer_;
  int64_t written_ = 0;
};

}  // namespace

absl::Status ExportMemory(const Memory& memory, const TensorWriter::Options& options, const Progress& progress) {
  return Exporter(memory, options, progress).Run();
}

}  // namespace mneme
