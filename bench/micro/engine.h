// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_BENCH_MICRO_ENGINE_H_
#define MNEME_BENCH_MICRO_ENGINE_H_

#include <cstdint>

#include "mneme.h"

#include "bench/host.h"

namespace mneme {

// A store in a folder of its own with one memory of `layers` equal layers. scale: of logits; 0: 1 / sqrt(dim).
class Engine {
 public:
  Engine(int layers, int q_heads, int kv_heads, int dim, int threads, int dtype, float scale = 0)
      : kv_heads_(kv_heads), dim_(dim) {
    mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
    options.threads = threads;
    Check(mneme_store_open(folder_.path().c_str(), &options, &store));
    memory = CreateMemory(store, layers, q_heads, kv_heads, dim, dtype, scale);
  }

  ~Engine() {
    Check(mneme_memory_close(memory));
    Check(mneme_store_close(store));
  }

  // Rows [tokens, KV heads, dim] for one layer, as keys and values. strides: in elements; null: one after the other.
  void Append(int layer, int64_t tokens, const float* rows, const int64_t* strides = nullptr) {
    const int64_t shape[] = {tokens, kv_heads_, dim_};
    const mneme_tensor tensor = {const_cast<float*>(rows), MNEME_DTYPE_F32, MNEME_DEVICE_CPU, 0, 3, shape, strides};
    mneme_memory_append_args args = MNEME_MEMORY_APPEND_ARGS_INIT;
    args.layer = layer;
    args.keys = args.values = &tensor;
    Check(mneme_memory_append(memory, &args));
  }

  mneme_store* store = nullptr;
  mneme_memory* memory = nullptr;

 private:
  const TemporaryFolder folder_;
  const int kv_heads_;
  const int dim_;
};

}  // namespace mneme

#endif  // MNEME_BENCH_MICRO_ENGINE_H_
