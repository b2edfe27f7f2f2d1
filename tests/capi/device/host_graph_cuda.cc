// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "gtest/gtest.h"
#include "tests/capi/device/host_graph.h"

namespace mneme {
namespace {

class CudaGraph final : public HostGraph {
 public:
  explicit CudaGraph(cudaGraphExec_t graph) : graph_(graph) {}
  ~CudaGraph() override { cudaGraphExecDestroy(graph_); }
  void Replay(void* stream) override {
    EXPECT_EQ(cudaGraphLaunch(graph_, static_cast<cudaStream_t>(stream)), cudaSuccess);
  }

 private:
  const cudaGraphExec_t graph_;
};

}  // namespace

// The strictest mode: it refuses unsafe calls of every thread while a stream is captured, the engine's included.
void HostGraph::BeginCapture(void* stream) {
  EXPECT_EQ(cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeGlobal), cudaSuccess);
}

std::unique_ptr<HostGraph> HostGraph::EndCapture(void* stream) {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph) != cudaSuccess || graph == nullptr) {
    cudaGetLastError();
    return nullptr;
  }
  cudaGraphExec_t ready = nullptr;
  EXPECT_EQ(cudaGraphInstantiate(&ready, graph, 0), cudaSuccess);
  cudaGraphDestroy(graph);
  return std::make_unique<CudaGraph>(ready);
}

}  // namespace mneme
