// SPDX-License-Identifier: Apache-2.0
#include "storage/table_tail.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "base/checksum.h"
#include "storage/coding.h"
#include "storage/rocks.h"

namespace mneme {
namespace {

using rocksdb::IOStatus;

// The footer: kind of checksum (1 byte), places of metaindex and index, padding (40), version (4), magic number (8).
constexpr uint64_t kFooterBytes = 53;
constexpr uint64_t kPlacesBytes = 40;
constexpr uint64_t kMagic = 0x88e241b785f4cff7;
constexpr uint8_t kXxh3 = 4;
// Behind every block: how it is compressed (1 byte), checksum of it and that (4).
constexpr uint64_t kTrailerBytes = 5;
constexpr absl::string_view kPropertiesName = "rocksdb.properties";

// A block without its trailer.
struct Place {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

Place NextPlace(ByteReader& in) {
  const uint64_t offset = in.Varint();
  return {offset, in.Varint()};
}

class Tail {
 public:
  Tail(const std::string& name, const rocksdb::FSRandomAccessFile& file, uint64_t file_bytes)
      : name_(name), file_(file), file_bytes_(file_bytes) {}

  IOStatus Check() {
    if (file_bytes_ < kFooterBytes) return Damaged(absl::StrCat("is ", file_bytes_, " bytes, too few for a footer"));
    blocks_end_ = file_bytes_ - kFooterBytes;
    std::string footer;
    if (IOStatus status = Read({blocks_end_, kFooterBytes}, footer); !status.ok()) return status;
    const uint8_t checksum = static_cast<uint8_t>(footer[0]);
    const uint32_t version = LoadLittle<uint32_t>(footer.data() + 1 + kPlacesBytes);
    if (LoadLittle<uint64_t>(footer.data() + 1 + kPlacesBytes + 4) != kMagic || checksum != kXxh3 ||
        version != kTableVersion) {
      return Damaged(absl::StrCat("its footer should say magic ", absl::Hex(kMagic), ", version ", kTableVersion,
                                  ", checksums of kind ", kXxh3, " (XXH3); it has version ", version, " and kind ",
                                  checksum));
    }
    ByteReader places(absl::string_view(footer).substr(1, kPlacesBytes));
    const Place metaindex = NextPlace(places);
    const Place index = NextPlace(places);
    if (!places.ok() || !Inside(metaindex) || !Inside(index)) return Damaged("the places in its footer are outside");

    std::string block;
    if (IOStatus status = ReadBlock(metaindex, "metaindex", block); !status.ok()) return status;
    const std::optional<Place> properties = Find(block, kPropertiesName);
    if (!properties || !Inside(*properties)) return Damaged("its metaindex names no properties");
    return ReadBlock(*properties, "properties", block);
  }

 private:
  IOStatus Damaged(absl::string_view why) const { return IOStatus::Corruption(absl::StrCat(name_, ": ", why)); }

  bool Inside(const Place& block) const {
    return block.bytes <= blocks_end_ && block.offset <= blocks_end_ - block.bytes &&
           kTrailerBytes <= blocks_end_ - block.bytes - block.offset;
  }

  IOStatus Read(const Place& place, std::string& bytes) const {
    bytes.resize(place.bytes);
    rocksdb::Slice read;
    IOStatus status = file_.Read(place.offset, place.bytes, rocksdb::IOOptions(), &read, bytes.data(), nullptr);
    if (!status.ok()) return status;
    if (read.size() < place.bytes) return Damaged("ends before its size");
    if (read.data() != bytes.data()) bytes.assign(read.data(), read.size());
    return status;
  }

  // With its trailer cut off.
  IOStatus ReadBlock(const Place& place, absl::string_view what, std::string& block) const {
    if (IOStatus status = Read({place.offset, place.bytes + kTrailerBytes}, block); !status.ok()) return status;
    const uint8_t compression = static_cast<uint8_t>(block[place.bytes]);
    const uint32_t expected = Xxh3(block.data(), place.bytes) ^ compression * 0x6b9083d9u;
    if (LoadLittle<uint32_t>(block.data() + place.bytes + 1) != expected) {
      return Damaged(absl::StrCat("checksum of its ", what, " differs"));
    }
    block.resize(place.bytes);
    return IOStatus::OK();
  }

  // Entries of a metaindex: bytes shared with the key before (none), bytes of the key's rest, bytes of the value; key;
  // value. Behind the last: where entries begin (4 bytes each) and how many there are (4).
  static std::optional<Place> Find(absl::string_view block, absl::string_view key) {
    if (block.size() < 4) return std::nullopt;
    const uint64_t restarts = LoadLittle<uint32_t>(block.data() + block.size() - 4);
    if (4 * (restarts + 1) > block.size()) return std::nullopt;
    ByteReader entries(block.substr(0, block.size() - 4 * (restarts + 1)));
    while (entries.ok() && entries.remaining() > 0) {
      const uint64_t shared = entries.Varint();
      const uint64_t key_bytes = entries.Varint();
      const uint64_t value_bytes = entries.Varint();
      const absl::string_view found = entries.Bytes(key_bytes);
      ByteReader value(entries.Bytes(value_bytes));
      if (shared == 0 && found == key) {
        const Place place = NextPlace(value);
        if (value.ok()) return place;
      }
    }
    return std::nullopt;
  }

  const std::string& name_;
  const rocksdb::FSRandomAccessFile& file_;
  const uint64_t file_bytes_;
  uint64_t blocks_end_ = 0;
};

}  // namespace

IOStatus CheckTableTail(const std::string& name, const rocksdb::FSRandomAccessFile& file, uint64_t file_bytes) {
  return Tail(name, file, file_bytes).Check();
}

}  // namespace mneme
