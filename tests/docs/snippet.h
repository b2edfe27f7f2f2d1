// SPDX-License-Identifier: Apache-2.0
// What the pages' C code takes for granted (snippets_test.py).
#include <mneme.h>
#include <stdio.h>
#include <stdlib.h>

// Of CUDA's runtime.
typedef struct cuda_stream* cudaStream_t;
typedef struct cuda_graph* cudaGraph_t;
typedef struct cuda_graph_exec* cudaGraphExec_t;
enum { cudaStreamCaptureModeGlobal };
int cudaStreamBeginCapture(cudaStream_t stream, int mode);
int cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
int cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long flags);
int cudaStreamSynchronize(cudaStream_t stream);
int cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream);

// A host with a model of `layers` layers.
extern int layers, steps;
extern size_t batch;
extern mneme_store* store;
extern mneme_card* card;
extern mneme_memory* memory;
extern mneme_memory* const* memories;
extern mneme_tensor query, local_keys, local_values, keys, values, output, memory_output;
extern mneme_tensor output_gradient, query_gradient, local_keys_gradient, local_values_gradient;
extern float *gate, *gate_gradient;
extern int64_t* retrieved;
extern float *local_log_sum_exp, *memory_log_sum_exp;
extern int64_t first_local_token;
extern cudaStream_t stream;
int has_memory(int layer);
void own_attention(int layer);
void append_last_step(void);
