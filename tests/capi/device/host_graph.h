// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_DEVICE_HOST_GRAPH_H_
#define MNEME_TESTS_CAPI_DEVICE_HOST_GRAPH_H_

#include <memory>

namespace mneme {

// A CUDA graph as a host uses it. The program links host_graph_cuda.cc for CUDA's graphs, or host_graph_emulated.cc for
// those of the emulated device.
class HostGraph {
 public:
  static void BeginCapture(void* stream);
  // Returns: a graph that can be replayed; null if the stream was used for work that a graph cannot have.
  static std::unique_ptr<HostGraph> EndCapture(void* stream);

  virtual ~HostGraph() = default;
  virtual void Replay(void* stream) = 0;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_DEVICE_HOST_GRAPH_H_
