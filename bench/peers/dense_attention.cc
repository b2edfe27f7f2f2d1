// SPDX-License-Identifier: Apache-2.0
// Dense attention of one decode step over all rows, as llama.cpp computes it on the CPU (ggml_flash_attn_ext), for
// peers.py: the graph is built once, a step copies queries in, computes, and copies the output out.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ggml-cpu.h"
#include "ggml.h"

#define PEERS_API extern "C" __attribute__((visibility("default")))

struct peers_dense {
  ggml_context* context;
  ggml_tensor* query;
  ggml_tensor* output;
  ggml_cgraph* graph;
  ggml_threadpool* threads;
  ggml_cplan plan;
  uint8_t* work;
  float* rows;  // query, then output
};

// keys, values: f16 [kv_heads, rows, dim], which must outlive the object; rows a multiple of 256.
PEERS_API peers_dense* peers_dense_create(int64_t rows, int64_t kv_heads, int64_t group, int64_t dim, float scale,
                                          const void* keys, const void* values, int threads) {
  ggml_init_params params = {};
  params.mem_size = (size_t{1} << 20) + ggml_graph_overhead();
  params.no_alloc = true;  // keys and values may be too many to have twice
  auto* dense = new peers_dense{};
  dense->context = ggml_init(params);
  ggml_context* const context = dense->context;
  dense->rows = new float[static_cast<size_t>(2 * kv_heads * group * dim)];
  dense->query = ggml_new_tensor_3d(context, GGML_TYPE_F32, dim, 1, kv_heads * group);
  ggml_tensor* const k = ggml_new_tensor_3d(context, GGML_TYPE_F16, dim, rows, kv_heads);
  ggml_tensor* const v = ggml_new_tensor_3d(context, GGML_TYPE_F16, dim, rows, kv_heads);
  dense->output = ggml_flash_attn_ext(context, dense->query, k, v, nullptr, scale, 0.0f, 0.0f);
  k->data = const_cast<void*>(keys);
  v->data = const_cast<void*>(values);
  dense->query->data = dense->rows;
  dense->output->data = dense->rows + kv_heads * group * dim;
  dense->graph = ggml_new_graph(context);
  ggml_build_forward_expand(dense->graph, dense->output);
  ggml_threadpool_params pool = ggml_threadpool_params_default(threads);
  pool.poll = 0;  // a thread that waits must not disturb what is measured next
  dense->threads = ggml_threadpool_new(&pool);
  dense->plan = ggml_graph_plan(dense->graph, threads, dense->threads);
  dense->work = new uint8_t[dense->plan.work_size + 1];
  dense->plan.work_data = dense->work;
  return dense;
}

// query, output: f32 [kv_heads * group, dim]. 0: done.
PEERS_API int peers_dense_step(peers_dense* dense, const float* query, float* output) {
  std::memcpy(dense->query->data, query, ggml_nbytes(dense->query));
  const ggml_status status = ggml_graph_compute(dense->graph, &dense->plan);
  std::memcpy(output, dense->output->data, ggml_nbytes(dense->output));
  return status == GGML_STATUS_SUCCESS ? 0 : 1;
}

PEERS_API void peers_dense_destroy(peers_dense* dense) {
  ggml_threadpool_free(dense->threads);
  ggml_free(dense->context);
  delete[] dense->work;
  delete[] dense->rows;
  delete dense;
}
