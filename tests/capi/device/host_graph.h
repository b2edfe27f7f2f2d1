// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_DEVICE_HOST_GRAPH_H_
#define MNEME_TESTS_CAPI_DEVICE_HOST_GRAPH_H_

#include <memory>

namespace mneme {

// What a host does with CUDA graphs. Whether CUDA's or the emulated device's is settled when the program is linked, by
// which of host_graph_*.cc it has.
class HostGraph {
 public:
  static void BeginCapture(void* stream);
  // Ready to be replayed; null if something was asked of the stream that no graph can have a part in.
  static std::unique_ptr<HostGraph> EndCapture(void* stream);

  virtual ~HostGraph() = default;
  virtual void Replay(void* stream) = 0;
};

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_DEVICE_HOST_GRAPH_H_
