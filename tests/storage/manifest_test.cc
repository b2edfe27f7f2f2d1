// SPDX-License-Identifier: Apache-2.0
#include "storage/manifest.h"

#include <limits>
#include <random>

#include "base/checksum.h"
#include "storage/coding.h"
#include "tests/storage/testing.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

MemoryManifest FullManifest() {
  MemoryManifest manifest;
  manifest.name = std::string("a name with \0 and \xff", 20);
  manifest.generation = 0x123456789abcdef0;
  manifest.card = MakeCard(3, 2, 64);
  manifest.card.layers[1].layer = 5;
  manifest.card.layers[1].rotary = Rotary();
  manifest.card.layers[2].layer = 9;
  manifest.card.layers[2].soft_cap = 50.0f;
  manifest.card.layers[2].window = 1024;
  manifest.card.layers[2].rotary.magnitude = 1.5f;
  manifest.options.stored_dtype = DType::kI8;
  manifest.options.normalise_keys = true;
  manifest.options.keys_rotated = true;
  manifest.options.max_tokens = 100000;
  manifest.options.pinned_tokens = 4;
  manifest.options.segment_tokens = 8192;
  manifest.options.index_spec = "faiss:IVF64,PQ16";
  manifest.has_positions = true;
  manifest.has_token_ids = true;
  manifest.first_kept = 12;
  manifest.segments = {{17, 0, 4096, 4096, true}, {18, 4096, 300, 256, false}};
  manifest.indexes = {{3, 0, 4096, "hnsw"}};
  return manifest;
}

MemoryManifest ManifestWithAttachments() {
  MemoryManifest manifest = FullManifest();
  manifest.attachments = {{"window", 4, 4396, 1 << 20}, {std::string("\0", 1), 5, 0, 0}};
  return manifest;
}

// Wraps a body in a frame with the right checksum, so that only the body's own checks are left.
std::string Frame(const std::string& body, uint32_t version = 1) {
  std::string fields;
  AppendLittle(fields, version);
  AppendLittle(fields, static_cast<uint32_t>(body.size()));
  std::string bytes = "MNMF" + fields;
  AppendLittle(bytes, Checksum32(body.data(), body.size(), Checksum32(fields.data(), fields.size())));
  return bytes + body;
}

std::string BodyOf(const MemoryManifest& manifest) {
  return EncodeManifest(manifest).substr(16);
}

TEST(ManifestTest, ComesBackAsItWas) {
  for (const MemoryManifest& manifest : {FullManifest(), MakeManifest("m"), ManifestWithAttachments()}) {
    const auto decoded = DecodeManifest(EncodeManifest(manifest));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_TRUE(*decoded == manifest);
  }
}

TEST(ManifestTest, ARotaryThatLayersShareIsWrittenOnce) {
  MemoryManifest manifest = MakeManifest("m");
  manifest.card = MakeCard(30, 3, 64);
  EXPECT_LT(EncodeManifest(manifest).size(), 1600u);
}

// Earlier readers know version 1 alone, and can go on reading what has no attachment.
TEST(ManifestTest, OnlyAttachmentsNeedTheSecondVersion) {
  EXPECT_EQ(EncodeManifest(FullManifest())[4], 1);
  EXPECT_EQ(EncodeManifest(ManifestWithAttachments())[4], 2);
  // Without its version the list is bytes after the end, and the version without the list is too short.
  EXPECT_TRUE(absl::IsDataLoss(DecodeManifest(Frame(BodyOf(ManifestWithAttachments()), 1)).status()));
  EXPECT_TRUE(absl::IsDataLoss(DecodeManifest(Frame(BodyOf(FullManifest()), 2)).status()));
}

TEST(ManifestTest, RefusesAttachmentsWithoutNameOrId) {
  MemoryManifest manifest = ManifestWithAttachments();
  manifest.attachments[0].id = 0;
  EXPECT_TRUE(absl::IsDataLoss(DecodeManifest(EncodeManifest(manifest)).status()));
  manifest = ManifestWithAttachments();
  manifest.attachments[1].name.clear();
  EXPECT_TRUE(absl::IsDataLoss(DecodeManifest(EncodeManifest(manifest)).status()));
}

TEST(ManifestTest, FindsEveryFlippedByte) {
  const std::string good = EncodeManifest(ManifestWithAttachments());
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      EXPECT_TRUE(absl::IsDataLoss(DecodeManifest(bad).status())) << "byte " << i << " bit " << bit;
    }
  }
}

TEST(ManifestTest, FindsEveryTruncationAndTrailingBytes) {
  const std::string good = EncodeManifest(FullManifest());
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_TRUE(absl::IsDataLoss(DecodeManifest(good.substr(0, length)).status())) << length;
  }
  EXPECT_TRUE(absl::IsDataLoss(DecodeManifest(good + '\0').status()));
  EXPECT_THAT(std::string(DecodeManifest(Frame(BodyOf(FullManifest()) + "x")).status().message()),
              HasSubstr("bytes after its end"));
}

TEST(ManifestTest, ABodyCutAtAnyFieldIsDamagedEvenWithARightChecksum) {
  const std::string body = BodyOf(FullManifest());
  ASSERT_TRUE(DecodeManifest(Frame(body)).ok());
  for (size_t length = 0; length < body.size(); ++length) {
    EXPECT_TRUE(absl::IsDataLoss(DecodeManifest(Frame(body.substr(0, length))).status())) << length;
  }
}

TEST(ManifestTest, RandomBodiesWithARightChecksumNeverCrash) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  const std::string body = BodyOf(FullManifest());
  for (int trial = 0; trial < 20000; ++trial) {
    std::string bad = body;
    for (uint64_t flips = 1 + random() % 4; flips > 0; --flips) {
      // Counts and sizes are where a decoder dies: put in large numbers, too.
      bad[random() % bad.size()] = static_cast<char>(random() % 3 == 0 ? 0xff : random());
    }
    const auto decoded = DecodeManifest(Frame(bad));
    if (decoded.ok()) {
      EXPECT_TRUE(DecodeManifest(EncodeManifest(*decoded)).ok());
    } else {
      EXPECT_TRUE(absl::IsDataLoss(decoded.status()));
    }
  }
}

TEST(ManifestTest, RefusesANewerVersion) {
  const absl::Status status = DecodeManifest(Frame(BodyOf(FullManifest()), 3)).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("version 3"));
}

TEST(ManifestTest, RefusesWhatMakesNoSense) {
  void (*const spoils[])(MemoryManifest&) = {
      [](MemoryManifest& m) { m.name = ""; },
      [](MemoryManifest& m) { m.name.assign(256, 'n'); },
      [](MemoryManifest& m) { m.card.model_name.assign((1 << 16) + 1, 'n'); },
      [](MemoryManifest& m) { m.card.layers[0].kv_heads = 0; },
      [](MemoryManifest& m) { m.card.layers[0].rotary.layout = static_cast<RotaryLayout>(3); },
      [](MemoryManifest& m) { m.card.layers[0].rotary.magnitude = std::numeric_limits<float>::quiet_NaN(); },
      [](MemoryManifest& m) { m.options.stored_dtype = static_cast<DType>(4); },
      [](MemoryManifest& m) { m.options.max_tokens = -1; },
      [](MemoryManifest& m) { m.first_kept = int64_t{1} << 49; },
      [](MemoryManifest& m) { m.segments[0].id = 0; },
      [](MemoryManifest& m) { m.segments[1].rows = -1; },
      [](MemoryManifest& m) { m.indexes[0].id = 0; },
      [](MemoryManifest& m) { m.indexes[0].tokens = -5; },
  };
  int number = 0;
  for (const auto spoil : spoils) {
    MemoryManifest manifest = FullManifest();
    spoil(manifest);
    EXPECT_TRUE(absl::IsDataLoss(DecodeManifest(EncodeManifest(manifest)).status())) << "case " << number;
    ++number;
  }
}

}  // namespace
}  // namespace mneme
