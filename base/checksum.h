// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_CHECKSUM_H_
#define MNEME_BASE_CHECKSUM_H_

#include <cstddef>
#include <cstdint>

namespace mneme {

// The checksum of every value that mneme writes: the two halves of the 64-bit XXH3, combined by xor. It detects
// accidents, not attacks. seed: a hash of the value's key, so that a sound value under a wrong key is detected, too.
uint32_t Checksum32(const void* data, size_t size, uint64_t seed = 0);

// The lower half of XXH3 without a seed, as RocksDB uses it in its files.
uint32_t Xxh3(const void* data, size_t size);

}  // namespace mneme

#endif  // MNEME_BASE_CHECKSUM_H_
