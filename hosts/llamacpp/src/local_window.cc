// SPDX-License-Identifier: Apache-2.0
#include "hosts/llamacpp/src/local_window.h"

#include <algorithm>

namespace mneme::llama {
namespace {

// f16 zero of either sign; everything else in llama.cpp's masks is -infinity.
bool Seen(uint16_t half) {
  return (half & 0x7fffu) == 0;
}

}  // namespace

LocalWindow ReadLocalWindow(const ggml_tensor& mask, int64_t begin, int64_t end) {
  const auto row = [&](int64_t query) {
    return reinterpret_cast<const uint16_t*>(static_cast<const char*>(mask.data) + query * mask.nb[1]);
  };
  const int64_t all = mask.ne[0];
  LocalWindow window;
  int64_t low = all;
  int64_t high = 0;
  for (int64_t query = begin; query < end; ++query) {
    const uint16_t* cells = row(query);
    int64_t first = 0;
    while (first < all && !Seen(cells[first])) ++first;
    int64_t last = all;
    while (last > first && !Seen(cells[last - 1])) --last;
    if (first == last) continue;
    low = std::min(low, first);
    high = std::max(high, last);
  }
  if (low >= high) return window;
  window.first_cell = low;
  window.cells = high - low;

  window.causal = true;
  window.stride = (window.cells + 7) / 8;
  window.bits.assign(static_cast<size_t>(window.stride * (end - begin)), 0);
  for (int64_t query = begin; query < end; ++query) {
    const uint16_t* cells = row(query) + low;
    uint8_t* bits = window.bits.data() + (query - begin) * window.stride;
    int64_t count = 0;
    int64_t last = 0;
    for (int64_t cell = 0; cell < window.cells; ++cell) {
      const bool seen = Seen(cells[cell]);
      bits[cell / 8] = static_cast<uint8_t>(bits[cell / 8] | (seen << (cell % 8)));
      count += seen;
      if (seen) last = cell + 1;
    }
    if (query == begin) window.first_visible = count;
    window.causal = window.causal && count == last && count == window.first_visible + (query - begin);
  }
  if (window.causal) window.bits.clear();
  return window;
}

}  // namespace mneme::llama
