// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BASE_CHECKSUM_H_
#define MNEME_BASE_CHECKSUM_H_

#include <cstddef>
#include <cstdint>

namespace mneme {

// The checksum of every value mneme writes: XXH3, 64 bits, folded to 32 by xor of its halves. It finds
// accidents, not attackers. `seed` ties a value to its place (a hash of its key), so that a sound value
// found under a wrong key fails, too.
uint32_t Checksum32(const void* data, size_t size, uint64_t seed = 0);

// The lower half of XXH3, without a seed: as RocksDB has it in its files.
uint32_t Xxh3(const void* data, size_t size);

}  // namespace mneme

#endif  // MNEME_BASE_CHECKSUM_H_
