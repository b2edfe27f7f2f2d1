// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_CODING_H_
#define MNEME_STORAGE_CODING_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "absl/strings/string_view.h"

namespace mneme {

// Values are little-endian whatever the machine is; keys are big-endian (keys.h), so that bytes sort as numbers.

template <typename T>
void AppendLittle(std::string& out, T value) {
  static_assert(std::is_unsigned_v<T>);
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * i)));
}

// `in` has at least sizeof(T) bytes.
template <typename T>
T LoadLittle(const char* in) {
  static_assert(std::is_unsigned_v<T>);
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<uint64_t>(static_cast<uint8_t>(in[i])) << (8 * i);
  return static_cast<T>(value);
}

// Writes the parts of a value one after the other.
class ByteWriter {
 public:
  void U8(uint8_t value) { AppendLittle(out_, value); }
  void U16(uint16_t value) { AppendLittle(out_, value); }
  void U32(uint32_t value) { AppendLittle(out_, value); }
  void U64(uint64_t value) { AppendLittle(out_, value); }
  void I32(int32_t value) { U32(static_cast<uint32_t>(value)); }
  void I64(int64_t value) { U64(static_cast<uint64_t>(value)); }
  void F32(float value) { U32(std::bit_cast<uint32_t>(value)); }
  void Bool(bool value) { U8(value ? 1 : 0); }
  void Text(absl::string_view text) {
    U32(static_cast<uint32_t>(text.size()));
    out_.append(text.data(), text.size());
  }

  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads them back. After the first read past the end, and after every Fail, ok() is false and every further read
// gives zero; so a decoder may read a group of fields and look at ok() once, before it uses a count.
class ByteReader {
 public:
  explicit ByteReader(absl::string_view in) : in_(in) {}

  bool ok() const { return ok_; }
  size_t remaining() const { return in_.size(); }
  void Fail() { ok_ = false; }

  uint8_t U8() { return Number<uint8_t>(); }
  uint16_t U16() { return Number<uint16_t>(); }
  uint32_t U32() { return Number<uint32_t>(); }
  uint64_t U64() { return Number<uint64_t>(); }
  int32_t I32() { return static_cast<int32_t>(U32()); }
  int64_t I64() { return static_cast<int64_t>(U64()); }
  float F32() { return std::bit_cast<float>(U32()); }
  bool Bool() {
    const uint8_t value = U8();
    if (value > 1) Fail();
    return value == 1;
  }

  // Seven bits a byte, the least first, as RocksDB writes it. Fails beyond 64 bits.
  uint64_t Varint() {
    uint64_t number = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t byte = U8();
      number |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return ok_ ? number : 0;
    }
    Fail();
    return 0;
  }

  // The next `size` bytes, where they are.
  absl::string_view Bytes(uint64_t size) {
    if (!ok_ || size > in_.size()) {
      Fail();
      return absl::string_view();
    }
    const absl::string_view bytes = in_.substr(0, size);
    in_.remove_prefix(size);
    return bytes;
  }

  // Fails beyond `limit` bytes.
  std::string Text(size_t limit) {
    const uint32_t size = U32();
    if (size > limit) Fail();
    return std::string(Bytes(size));
  }

  // A count of things of at least `least_bytes` each: fails beyond `limit` and beyond what the bytes left can hold.
  size_t Count(size_t limit, size_t least_bytes) {
    const uint32_t count = U32();
    if (!ok_ || count > limit || count > in_.size() / least_bytes) {
      Fail();
      return 0;
    }
    return count;
  }

 private:
  template <typename T>
  T Number() {
    if (!ok_ || in_.size() < sizeof(T)) {
      ok_ = false;
      return 0;
    }
    const T value = LoadLittle<T>(in_.data());
    in_.remove_prefix(sizeof(T));
    return value;
  }

  absl::string_view in_;
  bool ok_ = true;
};

}  // namespace mneme

#endif  // MNEME_STORAGE_CODING_H_
