// SPDX-License-Identifier: Apache-2.0
#include "memory/exchange/import_memory.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"

#include "base/dtype.h"
#include "base/out_of_memory.h"
#include "base/status.h"
#include "index/key_index.h"
#include "memory/segment/code_columns.h"
#include "memory/segment/column_writer.h"

namespace mneme {
namespace {

// A larger segment would hold more of a layer in RAM than an import should.
constexpr int64_t kMaxSegmentTokens = 4096;
constexpr int64_t kMaxPosition = int64_t{1} << 48;

bool WantsIndexes(const MemoryOptions& options) {
  const absl::StatusOr<IndexSpec> spec = ParseIndexSpec(options.index_spec);
  return spec.ok() && spec->kind != IndexKind::kAuto && spec->kind != IndexKind::kScan;
}

absl::Status NotFiniteError(const std::string& tensor) {
  return absl::InvalidArgumentError(absl::StrCat("tensor \"", tensor, "\": expected finite numbers, got another one"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryImport>> MemoryImport::Open(StoreContext* store, const std::string& path) {
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<TensorReader> reader, TensorReader::Open(path));
  std::unique_ptr<MemoryImport> import(new MemoryImport(store, std::move(reader)));
  absl::StatusOr<MemoryContents> contents = ParseMetadata(import->reader_->metadata(), &import->checksums_);
  absl::Status status = contents.status();
  if (contents.ok()) {
    import->contents_ = *std::move(contents);
    status = import->CheckTensors();
  }
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat("path: ", path, ": ", status.message()));
  for (const std::string& name : import->reader_->names()) {
    import->bytes_ += static_cast<int64_t>(import->reader_->Find(name)->bytes());
  }
  return import;
}

MemoryImport::~MemoryImport() {
  if (committed_) return;
  // What was written is of no use. If it cannot be deleted now, the next writer does it.
  CatchExceptions("deleting an import", [&]() -> absl::Status {
    std::vector<SegmentId> segments;
    for (const SegmentRef& ref : segments_) segments.push_back(ref.id);
    std::vector<IndexId> blobs;
    for (const AttachmentRef& ref : attachments_) blobs.push_back(ref.id);
    if (!segments.empty()) store_->database().DropSegments(segments).IgnoreError();
    if (!blobs.empty()) store_->database().DropIndexes(blobs).IgnoreError();
    return absl::OkStatus();
  }).IgnoreError();
}

absl::Status MemoryImport::CheckTensors() const {
  std::set<std::string> expected;
  for (const ExchangeTensor& tensor : TensorsOf(contents_)) {
    const std::string& name = tensor.entry.name;
    const std::string described = DescribeTensor(tensor.entry.dtype, tensor.entry.shape);
    const TensorEntry* found = reader_->Find(name);
    if (found == nullptr || found->dtype != tensor.entry.dtype || found->shape != tensor.entry.shape) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor \"", name, "\": expected ", described, ", got ",
                       found == nullptr ? "none" : DescribeTensor(found->dtype, found->shape)));
    }
    expected.insert(name);
  }
  for (const std::string& name : reader_->names()) {
    if (!expected.contains(name)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\": expected tensors of the memory only"));
    }
  }
  if (checksums_.empty()) return absl::OkStatus();
  for (const std::string& name : expected) {
    if (!checksums_.contains(name)) {
      return absl::InvalidArgumentError(absl::StrCat("metadata \"checksums\": expected one of \"", name, "\""));
    }
  }
  return absl::OkStatus();
}

absl::Status MemoryImport::Write(const Progress& progress) {
  progress_ = &progress;
  const int64_t most = std::min(contents_.options.segment_tokens, kMaxSegmentTokens);
  for (const auto& [begin, end] : contents_.HeldRanges()) {
    for (int64_t token = begin; token < end; token += most) {
      MNEME_RETURN_IF_ERROR(WriteSegment(std::min(most, end - token), token));
    }
  }
  MNEME_RETURN_IF_ERROR(WriteAttachments());
  return CompareChecksums();
}

absl::Status MemoryImport::WriteSegment(int64_t n, int64_t first_token) {
  const SegmentId segment = store_->database().NewSegmentId();
  segments_.push_back({segment, first_token, n, n, true});
  MNEME_RETURN_IF_ERROR(WriteTokenColumns(segment, n, first_token));
  for (const LayerCard& layer : contents_.card.layers) {
    MNEME_RETURN_IF_ERROR(WriteKeys(segment, layer, n));
    MNEME_RETURN_IF_ERROR(WriteValues(segment, layer, n));
  }
  return absl::OkStatus();
}

absl::Status MemoryImport::WriteTokenColumns(SegmentId segment, int64_t n, int64_t first_token) {
  std::vector<int64_t> positions(static_cast<size_t>(n));
  std::vector<int32_t> token_ids(static_cast<size_t>(n));
  const absl::Span<char> position_bytes(reinterpret_cast<char*>(positions.data()), positions.size() * sizeof(int64_t));
  const absl::Span<char> id_bytes(reinterpret_cast<char*>(token_ids.data()), token_ids.size() * sizeof(int32_t));
  MNEME_RETURN_IF_ERROR(ReadNext("positions", position_bytes));
  MNEME_RETURN_IF_ERROR(ReadNext("token_ids", id_bytes));
  for (int64_t row = 0; row < n; ++row) {
    const int64_t position = positions[static_cast<size_t>(row)];
    if (position < -kMaxPosition || position > kMaxPosition) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"positions\": expected -2^48 to 2^48, got ", position));
    }
    has_positions_ |= position != first_token + row;
  }
  const auto source = [](absl::Span<char> bytes, size_t row_bytes) {
    return [bytes, row_bytes](int64_t row, int64_t* contiguous) -> const char* {
      *contiguous = static_cast<int64_t>(bytes.size() / row_bytes) - row;
      return bytes.data() + static_cast<size_t>(row) * row_bytes;
    };
  };
  MNEME_RETURN_IF_ERROR(WriteColumn(*transaction_, segment, {0, 0, ColumnKind::kPositions}, 0, n, sizeof(int64_t),
                                    source(position_bytes, sizeof(int64_t))));
  return WriteColumn(*transaction_, segment, {0, 0, ColumnKind::kTokenIds}, 0, n, sizeof(int32_t),
                     source(id_bytes, sizeof(int32_t)));
}

absl::Status MemoryImport::WriteKeys(SegmentId segment, const LayerCard& layer, int64_t n) {
  const DType dtype = contents_.options.stored_dtype;
  const std::string prefix = absl::StrCat("layers.", layer.layer, ".");
  LayerKeys keys;
  for (int32_t head = 0; head < layer.kv_heads; ++head) {
    keys.heads.push_back(LayerKeys::NewHead(layer, dtype));
    keys.heads.back()->Reserve(n);
  }
  ExchangeRows rows(dtype, layer.kv_heads, layer.key_dim);
  std::vector<char> stored;
  for (int64_t row = 0; row < n; row += kChunkRows) {
    rows.Resize(std::min(kChunkRows, n - row));
    MNEME_RETURN_IF_ERROR(ReadRows(prefix + "keys", prefix + "key_scales", rows));
    stored.resize(static_cast<size_t>(rows.tokens()) * rows.row_bytes());
    for (int32_t head = 0; head < layer.kv_heads; ++head) {
      rows.GetHead(head, absl::MakeSpan(stored));
      keys.heads[static_cast<size_t>(head)]->Append(stored.data(), rows.tokens());
    }
  }
  for (int32_t head = 0; head < layer.kv_heads; ++head) {
    MNEME_RETURN_IF_ERROR(WriteColumn(*transaction_, segment, {layer.layer, head, ColumnKind::kKeys}, 0, n,
                                      rows.row_bytes(), RowSourceOf(*keys.heads[static_cast<size_t>(head)])));
  }
  return WriteCodes(segment, layer, keys, n);
}

absl::Status MemoryImport::WriteCodes(SegmentId segment, const LayerCard& layer, const LayerKeys& keys, int64_t n) {
  // As for a tail that is sealed: where an index is wanted, it will answer for these rows.
  if (!IsCoded(n) || WantsIndexes(contents_.options)) return absl::OkStatus();
  const std::shared_ptr<LayerCodes> codes = LayerCodes::New(layer);
  for (int32_t head = 0; head < layer.kv_heads; ++head) {
    KeyCodes& one = *codes->heads[static_cast<size_t>(head)];
    one.Extend(*keys.heads[static_cast<size_t>(head)]);
    MNEME_RETURN_IF_ERROR(WriteHeadCodes(*transaction_, segment, layer.layer, head, n, one));
  }
  return absl::OkStatus();
}

absl::Status MemoryImport::WriteValues(SegmentId segment, const LayerCard& layer, int64_t n) {
  const std::string prefix = absl::StrCat("layers.", layer.layer, ".");
  ExchangeRows rows(contents_.options.stored_dtype, layer.kv_heads, layer.value_dim);
  std::vector<char> stored;
  for (int64_t row = 0; row < n; row += kChunkRows) {
    rows.Resize(std::min(kChunkRows, n - row));
    MNEME_RETURN_IF_ERROR(ReadRows(prefix + "values", prefix + "value_scales", rows));
    stored.resize(static_cast<size_t>(rows.tokens()) * rows.row_bytes());
    for (int32_t head = 0; head < layer.kv_heads; ++head) {
      rows.GetHead(head, absl::MakeSpan(stored));
      MNEME_RETURN_IF_ERROR(transaction_->PutChunk(segment, {layer.layer, head, ColumnKind::kValues}, row / kChunkRows,
                                                   stored, rows.row_bytes()));
    }
  }
  return absl::OkStatus();
}

absl::Status MemoryImport::ReadRows(const std::string& tensor, const std::string& scales, ExchangeRows& rows) {
  const DType dtype = contents_.options.stored_dtype;
  MNEME_RETURN_IF_ERROR(ReadNext(tensor, rows.elements()));
  if (dtype != DType::kI8) {
    const bool finite = AllFinite(dtype, rows.elements().data(), rows.elements().size() / DTypeSize(dtype));
    return finite ? absl::OkStatus() : NotFiniteError(tensor);
  }
  MNEME_RETURN_IF_ERROR(ReadNext(scales, rows.scales()));
  const bool finite = AllFinite(DType::kF32, rows.scales().data(), rows.scales().size() / sizeof(float));
  return finite ? absl::OkStatus() : NotFiniteError(scales);
}

absl::Status MemoryImport::WriteAttachments() {
  std::string bytes;
  for (size_t place = 0; place < contents_.attachments.size(); ++place) {
    AttachmentRef ref = contents_.attachments[place];
    bytes.resize(ref.bytes);
    MNEME_RETURN_IF_ERROR(ReadNext(absl::StrCat("attachments.", place), absl::MakeSpan(bytes)));
    ref.id = store_->database().NewIndexId();
    attachments_.push_back(ref);
    MNEME_RETURN_IF_ERROR(transaction_->PutAttachment(ref.id, bytes));
  }
  return absl::OkStatus();
}

absl::Status MemoryImport::ReadNext(const std::string& tensor, absl::Span<char> out) {
  Reading& reading = read_[tensor];
  MNEME_RETURN_IF_ERROR(reader_->Read(tensor, reading.bytes, out));
  reading.bytes += out.size();
  reading.hash.Add(out.data(), out.size());
  bytes_read_ += static_cast<int64_t>(out.size());
  if (!*progress_ || (*progress_)(bytes_read_, bytes_)) return absl::OkStatus();
  return absl::CancelledError("the import was cancelled by its progress callback");
}

absl::Status MemoryImport::CompareChecksums() const {
  for (const auto& [name, expected] : checksums_) {
    const auto found = read_.find(name);
    const uint64_t hash = found == read_.end() ? ContentHash().value() : found->second.hash.value();
    if (hash == expected) continue;
    return absl::DataLossError(
        absl::StrCat("path: tensor \"", name, "\" differs from its checksum: the file is damaged"));
  }
  return absl::OkStatus();
}

MemoryManifest MemoryImport::ManifestOf(const std::string& name) const {
  MemoryManifest manifest;
  manifest.name = name;
  manifest.generation = 1;
  manifest.card = contents_.card;
  manifest.options = contents_.options;
  manifest.has_positions = has_positions_;
  manifest.has_token_ids = true;
  manifest.first_kept = contents_.first_kept;
  manifest.segments = segments_;
  manifest.attachments = attachments_;
  return manifest;
}

}  // namespace mneme
