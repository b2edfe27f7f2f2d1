// SPDX-License-Identifier: Apache-2.0
#include "storage/manifest.h"

#include <algorithm>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "base/checksum.h"
#include "base/status.h"
#include "storage/coding.h"
#include "storage/keys.h"

namespace mneme {
namespace {

constexpr uint32_t kManifestMagic = 0x464d4e4d;  // "MNMF"
// Version 2 ends with a list of attachments. A manifest without any is written as version 1.
constexpr uint32_t kManifestVersion = 1;
constexpr uint32_t kManifestVersionWithAttachments = 2;
constexpr size_t kFrameBytes = 16;  // magic, version, body bytes, checksum: the same in every version

constexpr size_t kMaxTextBytes = 1 << 16;
constexpr size_t kMaxLayers = 1 << 14;
constexpr size_t kMaxRotaries = 1 << 14;
constexpr size_t kMaxFrequencies = 1 << 15;
constexpr size_t kMaxFrequenciesInAll = 1 << 22;  // layers share a rotary on disk, in memory each has its own
constexpr size_t kMaxSegments = 1 << 24;
constexpr size_t kMaxIndexes = 1 << 24;
constexpr size_t kMaxAttachments = 1 << 16;
constexpr int64_t kMaxTokens = int64_t{1} << 48;  // sums of two token counts stay far from overflow

constexpr size_t kRotaryBytes = 9;  // the least that one takes
constexpr size_t kLayerBytes = 36;
constexpr size_t kSegmentBytes = 33;
constexpr size_t kIndexBytes = 28;
constexpr size_t kAttachmentBytes = 28;

// The checksum covers version, body length and body.
uint32_t FrameChecksum(absl::string_view version_and_length, absl::string_view body) {
  return Checksum32(body.data(), body.size(), Checksum32(version_and_length.data(), version_and_length.size()));
}

// Most models turn all layers alike (or in two ways): each distinct rotary is written once.
std::vector<const Rotary*> DistinctRotaries(const ModelCard& card) {
  std::vector<const Rotary*> distinct;
  for (const LayerCard& layer : card.layers) {
    if (std::none_of(distinct.begin(), distinct.end(), [&](const Rotary* r) { return *r == layer.rotary; })) {
      distinct.push_back(&layer.rotary);
    }
  }
  return distinct;
}

void WriteCard(const ModelCard& card, ByteWriter& out) {
  out.Text(card.model_name);
  out.Text(card.weights_fingerprint);
  const std::vector<const Rotary*> rotaries = DistinctRotaries(card);
  out.U32(static_cast<uint32_t>(rotaries.size()));
  for (const Rotary* rotary : rotaries) {
    out.U8(static_cast<uint8_t>(rotary->layout));
    out.F32(rotary->magnitude);
    out.U32(static_cast<uint32_t>(rotary->inverse_frequencies.size()));
    for (const float frequency : rotary->inverse_frequencies) out.F32(frequency);
  }
  out.U32(static_cast<uint32_t>(card.layers.size()));
  for (const LayerCard& layer : card.layers) {
    out.I32(layer.layer);
    out.I32(layer.query_heads);
    out.I32(layer.kv_heads);
    out.I32(layer.key_dim);
    out.I32(layer.value_dim);
    out.F32(layer.scale);
    out.F32(layer.soft_cap);
    out.I32(layer.window);
    const auto found =
        std::find_if(rotaries.begin(), rotaries.end(), [&](const Rotary* r) { return *r == layer.rotary; });
    out.U32(static_cast<uint32_t>(found - rotaries.begin()));
  }
}

void ReadCard(ByteReader& in, ModelCard& card) {
  card.model_name = in.Text(kMaxTextBytes);
  card.weights_fingerprint = in.Text(kMaxTextBytes);
  std::vector<Rotary> rotaries(in.Count(kMaxRotaries, kRotaryBytes));
  for (Rotary& rotary : rotaries) {
    const uint8_t layout = in.U8();
    if (layout > static_cast<uint8_t>(RotaryLayout::kHalves)) in.Fail();
    rotary.layout = static_cast<RotaryLayout>(layout);
    rotary.magnitude = in.F32();
    rotary.inverse_frequencies.resize(in.Count(kMaxFrequencies, sizeof(float)));
    for (float& frequency : rotary.inverse_frequencies) frequency = in.F32();
    if (!in.ok()) return;
  }
  card.layers.resize(in.Count(kMaxLayers, kLayerBytes));
  size_t frequencies = 0;
  for (LayerCard& layer : card.layers) {
    layer.layer = in.I32();
    layer.query_heads = in.I32();
    layer.kv_heads = in.I32();
    layer.key_dim = in.I32();
    layer.value_dim = in.I32();
    layer.scale = in.F32();
    layer.soft_cap = in.F32();
    layer.window = in.I32();
    const uint32_t rotary = in.U32();
    if (rotary >= rotaries.size()) in.Fail();
    if (!in.ok()) return;
    frequencies += rotaries[rotary].inverse_frequencies.size();
    if (frequencies > kMaxFrequenciesInAll) return in.Fail();
    layer.rotary = rotaries[rotary];
    if (!ValidateLayer(layer).ok()) in.Fail();
  }
}

void WriteOptions(const MemoryOptions& options, ByteWriter& out) {
  out.U8(static_cast<uint8_t>(options.stored_dtype));
  out.Bool(options.normalise_keys);
  out.Bool(options.keys_rotated);
  out.I64(options.max_tokens);
  out.I64(options.pinned_tokens);
  out.I64(options.segment_tokens);
  out.Text(options.index_spec);
}

// A number of tokens or rows, or a token index.
int64_t ReadTokens(ByteReader& in) {
  const int64_t tokens = in.I64();
  if (tokens < 0 || tokens > kMaxTokens) in.Fail();
  return tokens;
}

void ReadOptions(ByteReader& in, MemoryOptions& options) {
  const uint8_t dtype = in.U8();
  if (dtype >= kDTypeCount) in.Fail();
  options.stored_dtype = static_cast<DType>(dtype);
  options.normalise_keys = in.Bool();
  options.keys_rotated = in.Bool();
  options.max_tokens = ReadTokens(in);
  options.pinned_tokens = ReadTokens(in);
  options.segment_tokens = ReadTokens(in);
  options.index_spec = in.Text(kMaxTextBytes);
}

void WriteAttachments(const std::vector<AttachmentRef>& attachments, ByteWriter& out) {
  out.U32(static_cast<uint32_t>(attachments.size()));
  for (const AttachmentRef& attachment : attachments) {
    out.Text(attachment.name);
    out.U64(attachment.id);
    out.I64(attachment.tokens);
    out.U64(attachment.bytes);
  }
}

void ReadAttachments(ByteReader& in, std::vector<AttachmentRef>& attachments) {
  attachments.resize(in.Count(kMaxAttachments, kAttachmentBytes));
  for (AttachmentRef& attachment : attachments) {
    attachment.name = in.Text(kMaxNameBytes);
    attachment.id = in.U64();
    attachment.tokens = ReadTokens(in);
    attachment.bytes = in.U64();
    if (attachment.id == 0 || attachment.name.empty()) in.Fail();
  }
}

void ReadBody(ByteReader& in, MemoryManifest& manifest) {
  manifest.name = in.Text(kMaxNameBytes);
  if (manifest.name.empty()) in.Fail();
  manifest.generation = in.U64();
  ReadCard(in, manifest.card);
  ReadOptions(in, manifest.options);
  manifest.has_positions = in.Bool();
  manifest.has_token_ids = in.Bool();
  manifest.first_kept = ReadTokens(in);
  manifest.segments.resize(in.Count(kMaxSegments, kSegmentBytes));
  for (SegmentRef& segment : manifest.segments) {
    segment.id = in.U64();
    segment.first_token = ReadTokens(in);
    segment.rows = ReadTokens(in);
    segment.chunked_rows = ReadTokens(in);
    segment.sealed = in.Bool();
    if (segment.id == 0) in.Fail();
  }
  manifest.indexes.resize(in.Count(kMaxIndexes, kIndexBytes));
  for (IndexRef& index : manifest.indexes) {
    index.id = in.U64();
    index.first_token = ReadTokens(in);
    index.tokens = ReadTokens(in);
    index.spec = in.Text(kMaxTextBytes);
    if (index.id == 0) in.Fail();
  }
}

}  // namespace

std::string EncodeManifest(const MemoryManifest& manifest) {
  ByteWriter out;
  out.Text(manifest.name);
  out.U64(manifest.generation);
  WriteCard(manifest.card, out);
  WriteOptions(manifest.options, out);
  out.Bool(manifest.has_positions);
  out.Bool(manifest.has_token_ids);
  out.I64(manifest.first_kept);
  out.U32(static_cast<uint32_t>(manifest.segments.size()));
  for (const SegmentRef& segment : manifest.segments) {
    out.U64(segment.id);
    out.I64(segment.first_token);
    out.I64(segment.rows);
    out.I64(segment.chunked_rows);
    out.Bool(segment.sealed);
  }
  out.U32(static_cast<uint32_t>(manifest.indexes.size()));
  for (const IndexRef& index : manifest.indexes) {
    out.U64(index.id);
    out.I64(index.first_token);
    out.I64(index.tokens);
    out.Text(index.spec);
  }
  if (!manifest.attachments.empty()) WriteAttachments(manifest.attachments, out);
  const std::string body = out.Take();

  std::string bytes;
  bytes.reserve(kFrameBytes + body.size());
  AppendLittle(bytes, kManifestMagic);
  AppendLittle(bytes, manifest.attachments.empty() ? kManifestVersion : kManifestVersionWithAttachments);
  AppendLittle(bytes, static_cast<uint32_t>(body.size()));
  AppendLittle(bytes, FrameChecksum(absl::string_view(bytes).substr(4, 8), body));
  return bytes + body;
}

absl::StatusOr<MemoryManifest> DecodeManifest(absl::string_view bytes) {
  if (bytes.size() < kFrameBytes) return absl::DataLossError("manifest: shorter than its header");
  if (LoadLittle<uint32_t>(bytes.data()) != kManifestMagic) return absl::DataLossError("manifest: wrong magic number");
  const uint32_t version = LoadLittle<uint32_t>(bytes.data() + 4);
  const uint32_t length = LoadLittle<uint32_t>(bytes.data() + 8);
  const absl::string_view body = bytes.substr(kFrameBytes);
  if (length != body.size()) {
    return absl::DataLossError(absl::StrCat("manifest: body is ", body.size(), " bytes, expected ", length));
  }
  if (LoadLittle<uint32_t>(bytes.data() + 12) != FrameChecksum(bytes.substr(4, 8), body)) {
    return absl::DataLossError("manifest: checksum differs");
  }
  // After the checksum, so that a damaged version is not taken for a newer one.
  if (version != kManifestVersion && version != kManifestVersionWithAttachments) {
    return absl::FailedPreconditionError(absl::StrCat("manifest: version ", version,
                                                      " was written by a newer mneme; this one reads ",
                                                      kManifestVersion, " and ", kManifestVersionWithAttachments));
  }
  ByteReader in(body);
  MemoryManifest manifest;
  ReadBody(in, manifest);
  if (version == kManifestVersionWithAttachments) ReadAttachments(in, manifest.attachments);
  if (!in.ok()) return absl::DataLossError("manifest: a field is out of bounds");
  if (in.remaining() != 0) return absl::DataLossError("manifest: bytes after its end");
  return manifest;
}

}  // namespace mneme
