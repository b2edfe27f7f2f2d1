// SPDX-License-Identifier: Apache-2.0
// The machine's read bandwidth, for peers.py.

#include <cstddef>

#include "bench/micro/read_bandwidth.h"

// Bytes a second at which `threads` threads read `data`, which is aligned to 32 bytes: the best of `rounds`.
extern "C" __attribute__((visibility("default"))) double peers_read_bandwidth(const char* data, size_t bytes,
                                                                              size_t threads, size_t rounds) {
  return mneme::ReadBandwidth(data, bytes, threads, rounds);
}
