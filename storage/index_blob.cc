// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "rocksdb/write_batch.h"

#include "base/checksum.h"
#include "base/status.h"
#include "storage/coding.h"
#include "storage/database_impl.h"
#include "storage/keys.h"

// Index blobs: pieces of bounded size, and a header that is written after them and names their generation.

namespace mneme {
namespace {

constexpr size_t kPieceBytes = size_t{4} << 20;
constexpr uint32_t kHeaderMagic = 0x31494e4d;  // "MNI1": magic and version
constexpr size_t kHeaderBytes = 24;            // checksum, magic, generation, blob bytes
constexpr size_t kPieceHeaderBytes = 4;        // checksum

struct Header {
  uint64_t generation = 0;
  uint64_t bytes = 0;
};

std::string EncodeHeader(absl::string_view key, const Header& header) {
  std::string fields;
  AppendLittle(fields, kHeaderMagic);
  AppendLittle(fields, header.generation);
  AppendLittle(fields, header.bytes);
  std::string value;
  AppendLittle(value, Checksum32(fields.data(), fields.size(), KeySeed(key)));
  return value + fields;
}

absl::StatusOr<Header> DecodeHeader(absl::string_view key, absl::string_view value) {
  if (value.size() != kHeaderBytes ||
      LoadLittle<uint32_t>(value.data()) != Checksum32(value.data() + 4, kHeaderBytes - 4, KeySeed(key)) ||
      LoadLittle<uint32_t>(value.data() + 4) != kHeaderMagic) {
    return absl::DataLossError("its header is damaged");
  }
  Header header;
  header.generation = LoadLittle<uint64_t>(value.data() + 8);
  header.bytes = LoadLittle<uint64_t>(value.data() + 16);
  return header;
}

std::string BlobName(IndexId index, int32_t layer, int32_t head) {
  return absl::StrCat("index ", index, " layer ", layer, " head ", head);
}

}  // namespace

absl::Status DatabaseImpl::PutIndexBlob(IndexId index, int32_t layer, int32_t head, absl::string_view blob) {
  return Guarded("put index", [&]() -> absl::Status {
    if (index == 0 || layer < 0 || head < 0) {
      return absl::InvalidArgumentError(absl::StrCat("put index: no such place: ", BlobName(index, layer, head)));
    }
    std::shared_lock<std::shared_mutex> lock;
    MNEME_RETURN_IF_ERROR(LockForWrite(lock));
    rocksdb::ColumnFamilyHandle* const family = this->family(kIndexFamily);
    const std::string header_key = IndexKey(index, layer, head, 0, 0);
    const std::lock_guard guard(index_mutex_);
    if (dropped_indexes_.count(index) != 0) return absl::OkStatus();
    Header header{1, blob.size()};
    std::string old_value;
    const rocksdb::Status found = db()->Get(rocksdb::ReadOptions(), family, ToSlice(header_key), &old_value);
    if (found.ok()) {
      // A damaged header is replaced; then any older pieces die with the index.
      if (const auto old = DecodeHeader(header_key, old_value); old.ok()) header.generation = old->generation + 1;
    }
    rocksdb::WriteBatch batch;
    uint32_t piece = 0;
    for (size_t at = 0; at < blob.size(); at += kPieceBytes, ++piece) {
      const absl::string_view bytes = blob.substr(at, kPieceBytes);
      const std::string key = IndexKey(index, layer, head, header.generation, piece);
      std::string checksum;
      AppendLittle(checksum, Checksum32(bytes.data(), bytes.size(), KeySeed(key)));
      const rocksdb::Slice key_slice = ToSlice(key);
      const rocksdb::Slice parts[] = {ToSlice(checksum), ToSlice(bytes)};
      Reserve(batch, key.size() + checksum.size() + bytes.size());
      MNEME_RETURN_IF_ERROR(
          FromRocks(batch.Put(family, rocksdb::SliceParts(&key_slice, 1), rocksdb::SliceParts(parts, 2)), "put index"));
      if (at + kPieceBytes < blob.size()) {
        MNEME_RETURN_IF_ERROR(Wrote(index_writer_->Write(index, &batch), "put index"));
        batch.Clear();
      }
    }
    Reserve(batch, 4 * header_key.size() + 64);
    MNEME_RETURN_IF_ERROR(
        FromRocks(batch.Put(family, ToSlice(header_key), ToSlice(EncodeHeader(header_key, header))), "put index"));
    if (header.generation > 1) {
      const std::string begin = IndexKey(index, layer, head, 1, 0);
      const std::string end = IndexKey(index, layer, head, header.generation, 0);
      MNEME_RETURN_IF_ERROR(FromRocks(batch.DeleteRange(family, ToSlice(begin), ToSlice(end)), "put index"));
    }
    return Wrote(index_writer_->Write(index, &batch), "put index");
  });
}

absl::StatusOr<std::string> DatabaseImpl::ReadIndexPieces(IndexId index, int32_t layer, int32_t head) {
  const std::string name = BlobName(index, layer, head);
  MNEME_ASSIGN_OR_RETURN(const View view, ViewOf(Seen::kRowsView));
  rocksdb::ColumnFamilyHandle* const family = view.family(kIndexFamily);
  const std::string header_key = IndexKey(index, layer, head, 0, 0);
  rocksdb::PinnableSlice value;
  rocksdb::Status status = view->Get(rocksdb::ReadOptions(), family, ToSlice(header_key), &value);
  if (status.IsNotFound()) return absl::NotFoundError(absl::StrCat(name, ": there is none"));
  MNEME_RETURN_IF_ERROR(MapRead(status, name, Seen::kRowsView));
  const absl::StatusOr<Header> header = DecodeHeader(header_key, ToView(value));
  if (!header.ok()) return absl::DataLossError(absl::StrCat(name, ": ", header.status().message()));

  std::string blob;  // grows with the pieces that are there, whatever the header claims
  for (uint32_t piece = 0; blob.size() < header->bytes; ++piece) {
    const std::string key = IndexKey(index, layer, head, header->generation, piece);
    value.Reset();
    status = view->Get(rocksdb::ReadOptions(), family, ToSlice(key), &value);
    if (status.IsNotFound()) return absl::DataLossError(absl::StrCat(name, ": piece ", piece, " is missing"));
    MNEME_RETURN_IF_ERROR(MapRead(status, name, Seen::kRowsView));
    const uint64_t expected = std::min<uint64_t>(kPieceBytes, header->bytes - blob.size());
    if (value.size() != kPieceHeaderBytes + expected ||
        LoadLittle<uint32_t>(value.data()) != Checksum32(value.data() + kPieceHeaderBytes, expected, KeySeed(key))) {
      return absl::DataLossError(absl::StrCat(name, ": checksum of piece ", piece, " differs"));
    }
    blob.append(value.data() + kPieceHeaderBytes, expected);
  }
  return blob;
}

absl::StatusOr<std::string> DatabaseImpl::GetIndexBlob(IndexId index, int32_t layer, int32_t head) {
  return Guarded("get index", [&]() -> absl::StatusOr<std::string> {
    absl::StatusOr<std::string> blob = ReadIndexPieces(index, layer, head);
    // A Put that replaced it between header and pieces looks like damage; once more tells.
    // So does, to a reader, one that the writer has moved.
    if (blob.ok()) return blob;
    MNEME_ASSIGN_OR_RETURN(const bool newer, RefreshRowsView());
    if (newer || absl::IsDataLoss(blob.status())) blob = ReadIndexPieces(index, layer, head);
    return blob;
  });
}

absl::StatusOr<std::string> DatabaseImpl::GetAttachment(const AttachmentRef& attachment) {
  MNEME_ASSIGN_OR_RETURN(std::string bytes, GetIndexBlob(attachment.id, 0, 0));
  if (bytes.size() == attachment.bytes) return bytes;
  return absl::DataLossError(absl::StrCat("expected ", attachment.bytes, " bytes, found ", bytes.size()));
}

}  // namespace mneme
