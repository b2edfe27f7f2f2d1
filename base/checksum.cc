// SPDX-License-Identifier: Apache-2.0
#include "base/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace mneme {

uint32_t Checksum32(const void* data, size_t size, uint64_t seed) {
  const uint64_t hash = XXH3_64bits_withSeed(data, size, seed);
  return static_cast<uint32_t>(hash ^ hash >> 32);
}

uint32_t Xxh3(const void* data, size_t size) {
  return static_cast<uint32_t>(XXH3_64bits(data, size));
}

}  // namespace mneme
