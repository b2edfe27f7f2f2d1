// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_CONTENT_HASH_H_
#define MNEME_BASE_CONTENT_HASH_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mneme {

// The 64-bit XXH3 of bytes that come in pieces; how they are cut does not matter. It detects accidents, not attacks.
class ContentHash {
 public:
  ContentHash();
  ~ContentHash();
  ContentHash(ContentHash&&) noexcept;
  ContentHash& operator=(ContentHash&&) noexcept;

  void Add(const void* data, size_t size);
  // Returns: the hash of what was added so far.
  uint64_t value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mneme

#endif  // MNEME_BASE_CONTENT_HASH_H_
