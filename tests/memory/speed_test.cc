// SPDX-License-Identifier: Apache-2.0
// Prints figures. No test here fails because a machine is slow.

#include <algorithm>
#include <chrono>

#include "tests/memory/testing.h"

namespace mneme {
namespace {

double MicrosecondsNow() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A decode step of a small model: 30 layers, 3 KV heads of 64, f32 in; the target is 100 us a token.
TEST(SpeedTest, AppendOfOneToken) {
  ModelCard card;
  card.model_name = "small";
  for (int32_t number = 0; number < 30; ++number) {
    LayerCard layer;
    layer.layer = number;
    layer.query_heads = 9;
    layer.kv_heads = 3;
    layer.key_dim = layer.value_dim = 64;
    card.layers.push_back(layer);
  }
  TempFolder folder;
  const auto store = OpenStore(folder.store());
  for (const DType stored : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    for (const DType given : {DType::kF32, DType::kF16}) {
      MemoryOptions options;
      options.stored_dtype = stored;
      const auto memory = *store->CreateMemory(absl::StrCat(DTypeName(stored), " ", DTypeName(given)), card, options);
      constexpr int64_t kTokens = 500;
      const Rows keys = KeysOf(1, card.layers[0], 0, kTokens, given),
                 values = ValuesOf(1, card.layers[0], 0, kTokens, given);
      std::vector<double> times;
      for (int64_t token = 0; token < kTokens; ++token) {
        RowTensor key = keys.tensor, value = values.tensor;
        key.data = keys.tensor.Row(token, 0);
        value.data = values.tensor.Row(token, 0);
        key.rows = value.rows = 1;
        const double begin = MicrosecondsNow();
        for (int32_t layer = 0; layer < 30; ++layer) ASSERT_OK(memory->Append(layer, key, value, nullptr, nullptr));
        times.push_back(MicrosecondsNow() - begin);
      }
      std::sort(times.begin(), times.end());
      std::printf("[  SPEED   ] append of one token, 30 layers x 3 heads x 64, %s as %s: median %.1f us\n",
                  std::string(DTypeName(given)).c_str(), std::string(DTypeName(stored)).c_str(),
                  times[times.size() / 2]);
    }
  }
}

}  // namespace
}  // namespace mneme
