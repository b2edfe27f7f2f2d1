// SPDX-License-Identifier: Apache-2.0
#include "base/content_hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace mneme {

struct ContentHash::State {
  XXH3_state_t xxh3;
};

ContentHash::ContentHash() : state_(std::make_unique<State>()) {
  XXH3_INITSTATE(&state_->xxh3);
  XXH3_64bits_reset(&state_->xxh3);
}

ContentHash::~ContentHash() = default;
ContentHash::ContentHash(ContentHash&&) noexcept = default;
ContentHash& ContentHash::operator=(ContentHash&&) noexcept = default;

void ContentHash::Add(const void* data, size_t size) {
  XXH3_64bits_update(&state_->xxh3, data, size);
}

uint64_t ContentHash::value() const {
  return XXH3_64bits_digest(&state_->xxh3);
}

}  // namespace mneme
